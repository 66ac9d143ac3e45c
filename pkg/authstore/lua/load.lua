-- KEYS: the key ring. ARGV: clock. Returns the ring ('' when there is none) and the instant in ms.
local now = ARGV[1]
if now == '' then
  local t = redis.call('TIME')
  now = string.format('%d', t[1] * 1000 + math.floor(t[2] / 1000))
end
return { redis.call('GET', KEYS[1]) or '', now }
