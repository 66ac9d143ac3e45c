-- KEYS: the key ring. ARGV: expected ring ('' for none), new ring. Returns 1 if it was replaced.
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
return 1
