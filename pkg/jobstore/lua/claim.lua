-- ARGV: unit id, fence, clock, state that the job moves to ('' for none), safety TTL in ms,
-- token of this claim ('' for none).
-- The claim gets a fence of its own, from the clock: a Redis that has lost its last writes, such as a promoted replica, may
-- give the same task out again, and two attempts must never share a fence. So a second delivery of the task is refused
-- (FENCED). A repetition of the claim, whose first answer was lost, has the same token and succeeds.
local unit, fence, now, target = ARGV[1], ARGV[2], clock(ARGV[3]), ARGV[4]
if not live() then return { 'NOTLIVE' } end
if redis.call('HEXISTS', results, unit) == 1 then return { 'FENCED' } end
local current = redis.call('HGET', fences, unit)
local repeated = ARGV[6] ~= '' and redis.call('HGET', claims, unit) == current
  and redis.call('HGET', claims, unit .. '.token') == ARGV[6]
if not repeated then
  if current ~= fence or redis.call('HGET', claims, unit) == fence then return { 'FENCED' } end
  -- The seal is refused while another unit is open: the manifest would lack that unit's files.
  if target == 'sealing' and redis.call('ZCARD', waiting) + redis.call('ZCARD', issued) > 1 then return { 'FENCED' } end
  if target ~= '' and redis.call('HGET', job, 'state') ~= target and not move(target) then return { 'CONFLICT' } end
  current = string.format('%.0f', math.max(fence + 1, now))
  redis.call('HSET', fences, unit, current)
  redis.call('HSET', claims, unit, current, unit .. '.token', ARGV[6], unit .. '.task', fence)
end
redis.call('ZADD', issued, now, unit)
renew_ttl(ARGV[5])
return {
  'OK', current, redis.call('HGET', units, unit), redis.call('HGET', attempts, unit) or '0',
  redis.call('HGET', job, 'trace') or ''
}
