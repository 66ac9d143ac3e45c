-- Deletes a job: its keys, its index entries and its owner's entry. ARGV: ms for which the id is refused, so that a late
-- create records nothing.
free_place()
for _, name in ipairs(JOBKEYS) do redis.call('DEL', name) end
redis.call('ZREM', active, ID)
redis.call('ZREM', due, ID)
redis.call('SET', removed, 1, 'PX', ARGV[1])
return { 'OK' }
