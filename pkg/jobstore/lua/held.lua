-- What an owner holds. KEYS: its finished jobs by when they expire, their stored bytes. ARGV: clock.
-- Returns how many there are, their bytes, and the first to expire with its time; '' and 0 for none.
local finished, stored, now = KEYS[1], KEYS[2], ARGV[1]
if now == '' then
  local t = redis.call('TIME')
  now = string.format('%.0f', t[1] * 1000 + math.floor(t[2] / 1000))
end
-- Expired ones hold nothing, whether or not a scheduler has come by. Each is dropped once.
for _, id in ipairs(redis.call('ZRANGEBYSCORE', finished, '-inf', now, 'LIMIT', 0, 1000)) do
  local bytes = redis.call('HGET', stored, id) or '0'
  if bytes ~= '0' then redis.call('HINCRBY', stored, 'total', '-' .. bytes) end
  redis.call('HDEL', stored, id)
  redis.call('ZREM', finished, id)
end
if redis.call('EXISTS', finished) == 0 then redis.call('DEL', stored) end
local first = redis.call('ZRANGE', finished, 0, 0, 'WITHSCORES')
return { redis.call('ZCARD', finished), redis.call('HGET', stored, 'total') or '0', first[1] or '', first[2] or '0' }
