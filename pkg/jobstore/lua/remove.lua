-- Deletes a job: its keys, its index entries and its owner's entry. ARGV: ms for which the id is refused, so that a late
-- create records nothing; 1 to remove it only if its kick-off was never confirmed and no worker has begun.
if ARGV[2] == '1' and redis.call('EXISTS', job) == 1 then
  local state, unconfirmed = unpack(redis.call('HMGET', job, 'state', 'unconfirmed'))
  if state ~= 'scheduled' or not unconfirmed then return { 'CONFLICT', 'it has begun' } end
end
free_place()
for _, name in ipairs(JOBKEYS) do redis.call('DEL', name) end
redis.call('ZREM', active, ID)
redis.call('ZREM', due, ID)
redis.call('SET', removed, 1, 'PX', ARGV[1])
return { 'OK' }
