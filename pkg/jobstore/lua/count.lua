-- KEYS: a counter. ARGV: window in ms, most increments in a window. Returns the ms to wait, or 0 if this increment is
-- allowed.
local counter = KEYS[1]
local count = redis.call('INCR', counter)
if count == 1 then redis.call('PEXPIRE', counter, ARGV[1]) end
if count <= tonumber(ARGV[2]) then return 0 end
local window = tonumber(ARGV[1])
local left = redis.call('PTTL', counter)
if left < 0 or left > window then -- longer: the previous release extends the window of polls
  redis.call('PEXPIRE', counter, window)
  left = window
end
return math.max(left, 1)
