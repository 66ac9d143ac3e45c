-- ARGV: unit id, fence, clock.
if not live() then return { 'NOTLIVE' } end
if not holds(ARGV[1], ARGV[2]) then return fenced(ARGV[1], ARGV[2]) end
redis.call('ZADD', issued, 'XX', clock(ARGV[3]), ARGV[1])
return { 'OK' }
