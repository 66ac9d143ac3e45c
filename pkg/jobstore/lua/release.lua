-- ARGV: unit id, fence, clock, ms to wait, whether it counts as an attempt (1|0), cause.
-- The unit gets a new fence; the caller's fence is stale from here on.
local unit = ARGV[1]
if not live() then return { 'NOTLIVE' } end
if not holds(unit, ARGV[2]) then
  local fresh = ARGV[2] + 1
  if tonumber(redis.call('HGET', fences, unit) or '0') == fresh and not redis.call('HGET', claims, unit)
    and redis.call('HGET', attempts, unit .. '.cause') == ARGV[6] then
    return { 'OK', fresh } -- a repetition: the first answer was lost
  end
  return fenced(unit, ARGV[2])
end
redis.call('HDEL', claims, unit)
redis.call('HINCRBY', attempts, unit, ARGV[5])
redis.call('HSET', attempts, unit .. '.cause', ARGV[6])
redis.call('ZADD', issued, clock(ARGV[3]) + ARGV[4], unit)
return { 'OK', redis.call('HINCRBY', fences, unit, 1) }
