-- Moves a job to a state without work left, and its index entry with it.
-- ARGV: state, unit id ('' for none) and fence of the caller, due ms, safety TTL in ms, then the job's fields as pairs.
-- A move in a unit's name needs the unit's fence: an attempt that has lost it decides nothing.
local state = redis.call('HGET', job, 'state')
if not state then return { 'NOTFOUND' } end
if state == ARGV[1] then return { 'OK' } end -- a repetition: the first answer was lost
if ARGV[2] ~= '' and not holds(ARGV[2], ARGV[3]) then return { 'FENCED' } end
if not move(ARGV[1]) then return { 'CONFLICT' } end
for i = 6, #ARGV, 2 do redis.call('HSET', job, ARGV[i], ARGV[i + 1]) end
file(ARGV[4])
keep(ARGV[5])
return { 'OK' }
