-- ARGV: state to move to, unit id ('' for none) and fence of whoever moves it, then the job's fields as pairs.
-- A move in a unit's name needs the unit's fence: one that has lost it decides nothing.
if redis.call('EXISTS', job) == 0 then return { 'NOTFOUND' } end
if ARGV[2] ~= '' and not holds(ARGV[2], ARGV[3]) then return { 'FENCED' } end
if not move(ARGV[1]) then return { 'CONFLICT' } end
for i = 4, #ARGV, 2 do redis.call('HSET', job, ARGV[i], ARGV[i + 1]) end
return { 'OK' }
