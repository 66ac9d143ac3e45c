-- Moves a job to an ended state, and its index entry to the due index.
-- ARGV: state, unit id ('' for none) and fence of the caller, due ms, safety TTL in ms, then the job's fields as pairs.
-- If a unit is given, its fence must be current: a stale attempt must not end the job.
-- A full Redis refuses the first write of a script if it may need memory, and none after it. An ended job must be able to make
-- room, so the first write needs none; it changes nothing, because the call may be refused.
redis.call('HDEL', job, '')
local state = redis.call('HGET', job, 'state')
if not state then return { 'NOTFOUND' } end
if state == ARGV[1] then return { 'OK' } end -- a repetition: the first answer was lost
if ARGV[2] ~= '' and not holds(ARGV[2], ARGV[3]) then return { 'FENCED' } end
if not move(ARGV[1]) then return { 'CONFLICT' } end
redis.call('HDEL', job, 'unconfirmed')
for i = 6, #ARGV, 2 do redis.call('HSET', job, ARGV[i], ARGV[i + 1]) end
index_as_ended(ARGV[4])
renew_ttl(ARGV[5])
return { 'OK' }
