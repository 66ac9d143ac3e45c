-- Repairs the index entry of a job that ended or vanished under the previous release, which wrote record and index one
-- after the other. ARGV: now in ms.
if redis.call('EXISTS', job) == 0 then
  redis.call('ZREM', active, ID)
elseif not live() then
  index_as_ended(redis.call('HGET', job, 'expires') or ARGV[1])
end
return { 'OK' }
