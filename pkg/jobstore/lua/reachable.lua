-- KEYS: the outage record. ARGV: clock, ms without a call that count as an outage.
-- Notes that Redis is reachable, when its last outage ended, and when this Redis was first reached.
local outage, now = KEYS[1], clock(ARGV[1])
local seen = redis.call('HGET', outage, 'seen')
if seen and now - seen > tonumber(ARGV[2]) then redis.call('HSET', outage, 'over', now) end
redis.call('HSET', outage, 'seen', now)
redis.call('HSETNX', outage, 'born', now)
return { 'OK' }
