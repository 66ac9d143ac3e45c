-- ARGV: clock, ms of silence, most units, ms without a scheduler that count as an outage.
-- Returns for each unit that has been silent: fence, json, attempts, lost (1|0).
-- The worker of a claimed unit is lost: the unit gets a new fence, and the loss counts as an attempt. The task of an
-- unclaimed unit may be lost between issue and enqueue: the unit keeps its fence, and enqueueing a queued task again has no
-- effect.
-- During an outage of Redis nobody can send a heartbeat, so the silence of claimed units counts from its end.
if not live() then return { 'NOTLIVE' } end
local out, now = { 'OK' }, clock(ARGV[1])
local since = now - ARGV[2]
local seen, over = unpack(redis.call('HMGET', outage, 'seen', 'over'))
if seen and now - seen > tonumber(ARGV[4]) then over = now end -- this pass came before reachable.lua
local grace = tonumber(over or 0) > since
for _, unit in ipairs(redis.call('ZRANGEBYSCORE', issued, '-inf', since, 'LIMIT', 0, ARGV[3])) do
  local lost = redis.call('HGET', claims, unit) == redis.call('HGET', fences, unit)
  if not (lost and grace) then
    if lost then
      redis.call('HDEL', claims, unit)
      redis.call('HINCRBY', fences, unit, 1)
      redis.call('HINCRBY', attempts, unit, 1)
      redis.call('HSET', attempts, unit .. '.cause', 'lost')
    end
    redis.call('ZADD', issued, now, unit)
    out[#out + 1] = redis.call('HGET', fences, unit)
    out[#out + 1] = redis.call('HGET', units, unit)
    out[#out + 1] = redis.call('HGET', attempts, unit) or '0'
    out[#out + 1] = lost and '1' or '0'
  end
end
return out
