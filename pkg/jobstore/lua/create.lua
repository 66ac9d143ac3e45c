-- Records a job with its first unit and its index entries, if its owner is below the limit.
-- ARGV: owner's key, fingerprint of the request, most live jobs of the owner, 1 to join a live job with the same
-- fingerprint, 1 to check only, clock, safety TTL in ms, unit id, unit json, then the job's fields as pairs.
-- Returns OK, FULL with the live jobs, SAME with the job to join, or PENDING when that job may not be queued yet.
if redis.call('EXISTS', job) == 1 then return { 'OK' } end -- a repetition: the first answer was lost
if redis.call('EXISTS', removed) == 1 then return { 'CONFLICT', 'the job was removed' } end
local running, fingerprint, now = running_of(ARGV[1]), ARGV[2], clock(ARGV[6])
local live_jobs, same = {}, ''
local found = redis.call('ZRANGE', running, 0, -1, 'WITHSCORES')
for i = 1, #found, 2 do
  local other, print = string.match(found[i], '^(%S+) (%S+)$')
  local state, since = redis.call('HGET', 'sluice:{' .. other .. '}:job', 'state'), tonumber(found[i + 1])
  -- The previous release writes this entry before the record, so an entry without a record counts for a minute.
  if LIVE[state or ''] or (not state and since > now - 60000) then
    live_jobs[#live_jobs + 1] = other
    if ARGV[4] == '1' and print == fingerprint and same ~= 'SAME' then
      -- A score below zero, or a state after scheduled, shows that the job's plan was queued.
      same = (state and (since < 0 or state ~= 'scheduled')) and 'SAME' or 'PENDING'
      if same == 'SAME' then live_jobs = { other } end
    end
  else
    redis.call('ZREM', running, found[i])
  end
end
if same == 'SAME' then return { 'SAME', live_jobs[1] } end
if same == 'PENDING' then return { 'PENDING' } end
if #live_jobs >= tonumber(ARGV[3]) then
  table.insert(live_jobs, 1, 'FULL')
  return live_jobs
end
if ARGV[5] == '1' then return { 'OK' } end

for i = 10, #ARGV, 2 do redis.call('HSET', job, ARGV[i], ARGV[i + 1]) end
redis.call('HSET', job, 'owner_key', ARGV[1], 'fingerprint', fingerprint, 'unconfirmed', 1)
redis.call('HSET', units, ARGV[8], ARGV[9])
redis.call('HSET', fences, ARGV[8], 1)
redis.call('ZADD', issued, now, ARGV[8])
redis.call('ZADD', running, now, ID .. ' ' .. fingerprint)
redis.call('PEXPIRE', running, ARGV[7])
redis.call('ZADD', active, now, ID)
renew_ttl(ARGV[7])
return { 'OK' }
