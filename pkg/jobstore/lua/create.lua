-- ARGV: unit id, unit json, clock, then the job's fields as pairs.
if redis.call('EXISTS', job) == 1 then return { 'CONFLICT' } end
for i = 4, #ARGV, 2 do redis.call('HSET', job, ARGV[i], ARGV[i + 1]) end
redis.call('HSET', units, ARGV[1], ARGV[2])
redis.call('HSET', fences, ARGV[1], 1)
redis.call('ZADD', issued, clock(ARGV[3]), ARGV[1])
return { 'OK' }
