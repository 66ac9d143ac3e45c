-- KEYS: an owner's running jobs. ARGV: member ("<job id> <fingerprint>"), jobs allowed at once, 1 to look for a running
-- job of the same fingerprint, clock, ms until an unused key goes.
-- Returns OK, SAME or FULL; then the time, then members and since when each is there: below zero when it is settled.
local running, member, now = KEYS[1], ARGV[1], clock(ARGV[4])
if redis.call('ZSCORE', running, member) then return { 'OK' } end -- a repetition: the first answer was lost
if ARGV[3] == '1' then
  local found = redis.call('ZRANGE', running, 0, -1, 'WITHSCORES')
  for i = 1, #found, 2 do
    if string.match(found[i], ' .*') == string.match(member, ' .*') then return { 'SAME', now, found[i], found[i + 1] } end
  end
end
if redis.call('ZCARD', running) >= tonumber(ARGV[2]) then
  local found = redis.call('ZRANGE', running, 0, -1, 'WITHSCORES')
  table.insert(found, 1, now)
  table.insert(found, 1, 'FULL')
  return found
end
redis.call('ZADD', running, now, member)
redis.call('PEXPIRE', running, ARGV[5])
return { 'OK' }
