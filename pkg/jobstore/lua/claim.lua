-- ARGV: unit id, fence, clock, state that the job moves to ('' for none), safety TTL in ms,
-- token of this claim ('' for none).
-- A second delivery of the same task is refused (FENCED), so that two attempts never share a fence. A repetition of the
-- claim, whose first answer was lost, has the same token and succeeds.
local unit, fence, now, target = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
if not live() then return { 'NOTLIVE' } end
if redis.call('HGET', fences, unit) ~= fence then return { 'FENCED' } end
if redis.call('HEXISTS', results, unit) == 1 then return { 'FENCED' } end
if redis.call('HGET', claims, unit) == fence then
  if ARGV[6] == '' or redis.call('HGET', claims, unit .. '.token') ~= ARGV[6] then return { 'FENCED' } end
end
-- The seal is refused while another unit is open: the manifest would lack that unit's files.
if target == 'sealing' and redis.call('ZCARD', waiting) + redis.call('ZCARD', issued) > 1 then return { 'FENCED' } end
if target ~= '' and redis.call('HGET', job, 'state') ~= target and not move(target) then return { 'CONFLICT' } end
redis.call('HSET', claims, unit, fence, unit .. '.token', ARGV[6])
redis.call('ZADD', issued, clock(now), unit)
renew_ttl(ARGV[5])
return {
  'OK', redis.call('HGET', units, unit), redis.call('HGET', attempts, unit) or '0', redis.call('HGET', job, 'trace') or ''
}
