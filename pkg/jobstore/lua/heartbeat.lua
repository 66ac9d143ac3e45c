-- ARGV: unit id, fence, now.
if not live() then return { 'NOTLIVE' } end
if not holds(ARGV[1], ARGV[2]) then return { 'FENCED' } end
redis.call('ZADD', issued, 'XX', ARGV[3], ARGV[1])
return { 'OK' }
