-- KEYS: failures as the client from the address, failures as the client. ARGV: failures to add, window in ms, limit of the
-- first, limit of the second. Returns the ms to wait, or 0.
local counts = {}
for i, key in ipairs(KEYS) do
  if ARGV[1] ~= '0' then
    if redis.call('INCRBY', key, ARGV[1]) == tonumber(ARGV[1]) then redis.call('PEXPIRE', key, ARGV[2]) end
  end
  counts[i] = tonumber(redis.call('GET', key) or '0')
end
local address, client = counts[1], counts[2]
local wait = 0
if address >= tonumber(ARGV[3]) then wait = redis.call('PTTL', KEYS[1]) end
if address > 0 and client >= tonumber(ARGV[4]) then wait = math.max(wait, redis.call('PTTL', KEYS[2])) end
return wait
