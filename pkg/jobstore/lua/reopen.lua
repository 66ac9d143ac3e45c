-- ARGV: unit id, clock. Runs a unit at once for an operator: one that was given up, one whose worker makes no progress, or
-- one that waits for its next attempt. It gets a new fence and all its attempts.
-- Returns the fence and the unit's json.
local unit, now = ARGV[1], clock(ARGV[2])
local spec = redis.call('HGET', units, unit)
if redis.call('EXISTS', job) == 0 or not spec or redis.call('ZSCORE', staged, unit) then return { 'NOTFOUND' } end
if not live() then return { 'NOTLIVE' } end
if redis.call('ZSCORE', waiting, unit) then return { 'CONFLICT', 'it waits for its turn' } end
local result = redis.call('HGET', results, unit)
-- A later stage that a retry has taken back is in no index: it is opened when the retried unit is closed.
if not result and not redis.call('ZSCORE', issued, unit) then return { 'CONFLICT', 'it waits for its turn' } end
if result then
  local failure = cjson.decode(result).failure
  if not failure or failure == '' then return { 'CONFLICT', 'it is done' } end
  if redis.call('HGET', job, 'state') == 'sealing' then return { 'CONFLICT', 'the manifest is being written' } end
  local decoded = cjson.decode(spec)
  if decoded.kind == 'references' then
    for _, other in ipairs(redis.call('HVALS', units)) do
      local kind = cjson.decode(other).kind
      if kind == 'referenced' or kind == 'associated' then return { 'CONFLICT', 'what an attempt at it has cut is there already' } end
    end
  end
  -- Later stages were opened without this unit's result: they are taken back, or the retry is refused if one is claimed.
  local later = { 'seal' }
  if decoded.kind == 'export' then later = { 'references', 'seal' } end
  for _, stage in ipairs(later) do
    if redis.call('HEXISTS', results, stage) == 1 or redis.call('HEXISTS', claims, stage) == 1 then
      return { 'CONFLICT', 'the stage after it (' .. stage .. ') has begun' }
    end
  end
  for _, stage in ipairs(later) do
    if redis.call('ZREM', issued, stage) + redis.call('ZREM', waiting, stage) > 0 then
      redis.call('HINCRBY', fences, stage, 1)
      unstage() -- what a lost attempt at it has cut: the next commit of any unit would make it visible
    end
  end
  redis.call('HDEL', results, unit)
  if decoded.kind == 'export' or decoded.kind == 'referenced' or decoded.kind == 'associated' then
    local done = tonumber(redis.call('HGET', job, 'weight_done') or '0') - decoded.bytes - 1
    redis.call('HSET', job, 'weight_done', string.format('%.0f', math.max(0, done)))
  end
end
redis.call('HDEL', claims, unit)
redis.call('HSET', attempts, unit, 0, unit .. '.cause', 'operator', unit .. '.returned', 0)
redis.call('ZADD', issued, now, unit)
return { 'OK', redis.call('HINCRBY', fences, unit, 1), spec }
