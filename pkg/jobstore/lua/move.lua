-- ARGV: state to move to, then the job's fields as pairs.
if redis.call('EXISTS', job) == 0 then return { 'NOTFOUND' } end
if not move(ARGV[1]) then return { 'CONFLICT' } end
for i = 2, #ARGV, 2 do redis.call('HSET', job, ARGV[i], ARGV[i + 1]) end
return { 'OK' }
