-- KEYS: the key ring. ARGV: the ring that has to be there ('' for none), the ring to store.
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
return 1
