-- ARGV: unit id, fence, reset (1|0), safety TTL in ms, then triples of the units to stage: id, json, bytes.
-- Staged units are invisible until the staging unit commits. The first call of an attempt deletes the units that an
-- earlier attempt staged.
if not live() then return { 'NOTLIVE' } end
if not holds(ARGV[1], ARGV[2]) then return { 'FENCED' } end
if ARGV[3] == '1' then unstage() end
for i = 5, #ARGV, 3 do
  redis.call('HSET', units, ARGV[i], ARGV[i + 1])
  redis.call('HSET', fences, ARGV[i], 1)
  redis.call('ZADD', staged, ARGV[i + 2], ARGV[i])
end
renew_ttl(ARGV[4])
return { 'OK' }
