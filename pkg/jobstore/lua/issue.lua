-- ARGV: most units outstanding, clock. Returns id, fence and json of each issued unit, the largest first.
if not live() then return { 'NOTLIVE' } end
local out = { 'OK' }
while redis.call('ZCARD', issued) < tonumber(ARGV[1]) do
  local top = redis.call('ZPOPMAX', waiting)
  if #top == 0 then break end
  redis.call('ZADD', issued, clock(ARGV[2]), top[1])
  out[#out + 1] = redis.call('HGET', fences, top[1])
  out[#out + 1] = redis.call('HGET', units, top[1])
end
return out
