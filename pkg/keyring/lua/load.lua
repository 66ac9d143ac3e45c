-- KEYS: the key ring. ARGV: clock, or '' for that of Redis. Returns the ring, '' if missing, and the time in ms.
local now = ARGV[1]
if now == '' then
  local t = redis.call('TIME')
  now = string.format('%d', t[1] * 1000 + math.floor(t[2] / 1000))
end
return { redis.call('GET', KEYS[1]) or '', now }
