-- KEYS: one key. ARGV: a number, TTL in ms. Stores the number, unless a smaller one is there. Returns what is stored.
local known = tonumber(redis.call('GET', KEYS[1]) or '')
local number = tonumber(ARGV[1])
if known and known < number then number = known end
redis.call('SET', KEYS[1], string.format('%.0f', number), 'PX', ARGV[2])
return number
