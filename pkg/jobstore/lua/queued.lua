-- Confirms a job whose plan is in the queue, and marks it so in its owner's running jobs: the score is negated. An identical
-- kick-off may join it from now on.
local owner = redis.call('HGET', job, 'owner_key')
if not owner then return { 'NOTFOUND' } end
redis.call('HDEL', job, 'unconfirmed')
local member = ID .. ' ' .. redis.call('HGET', job, 'fingerprint')
local since = tonumber(redis.call('ZSCORE', running_of(owner), member) or '0')
if since > 0 then redis.call('ZADD', running_of(owner), 'XX', string.format('%.0f', -since), member) end
return { 'OK' }
