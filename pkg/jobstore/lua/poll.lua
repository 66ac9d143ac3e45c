-- ARGV: window in ms, polls allowed in a window. Returns the ms to wait, 0 when the poll is allowed.
local count = redis.call('INCR', polls)
if count == 1 then redis.call('PEXPIRE', polls, ARGV[1]) end
if count <= tonumber(ARGV[2]) then return { 'OK', 0 } end
local left = redis.call('PTTL', polls)
if left < 0 then
  redis.call('PEXPIRE', polls, ARGV[1])
  left = tonumber(ARGV[1])
end
return { 'OK', math.max(left, 1) }
