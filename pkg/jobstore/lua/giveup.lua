-- ARGV: unit id, result json, next unit id, next unit json. Gives up an open unit, even if a worker has claimed it: the unit
-- is closed as failed, under a new fence, so that the commit of its worker is refused.
local unit = ARGV[1]
local spec = redis.call('HGET', units, unit)
if redis.call('EXISTS', job) == 0 or not spec or redis.call('ZSCORE', staged, unit) then return { 'NOTFOUND' } end
if redis.call('HGET', results, unit) == ARGV[2] then return { 'OK' } end -- a repetition: the first answer was lost
if not live() then return { 'NOTLIVE' } end
if redis.call('HEXISTS', results, unit) == 1 then return { 'CONFLICT', 'it is closed' } end
if not redis.call('ZSCORE', issued, unit) and not redis.call('ZSCORE', waiting, unit) then
  return { 'CONFLICT', 'it waits for its turn' } -- a stage that was taken back for the sake of a retry
end
local decoded = cjson.decode(spec)
if decoded.kind == 'references' then unstage() end
redis.call('HSET', results, unit, ARGV[2])
redis.call('ZREM', issued, unit)
redis.call('ZREM', waiting, unit)
redis.call('HDEL', claims, unit)
redis.call('HINCRBY', fences, unit, 1)
redis.call('HSET', attempts, unit .. '.cause', 'operator')
if decoded.kind == 'export' or decoded.kind == 'referenced' or decoded.kind == 'associated' then
  progress(0, decoded.bytes + 1)
end
return { 'OK', open_next(ARGV[3], ARGV[4]) }
