-- ARGV: unit id, fence, result json, bytes done, state that the job moves to ('' for none),
--       next unit id ('' for none), next unit json, resources, bytes, stored bytes, due ms ('' unless the job ends),
--       safety TTL in ms, number of file names, the file names, then job fields as pairs.
-- Closes the unit. The units that it staged become visible in the same step, and the commit that empties the open set
-- opens the next unit, so that no job can stop between two stages.
local unit, fence, target, nextid = ARGV[1], ARGV[2], ARGV[5], ARGV[6]
if redis.call('HGET', results, unit) == ARGV[3] and redis.call('HGET', fences, unit) == fence then
  return { 'OK', 0 } -- a repetition: the first answer was lost
end
if not live() then return { 'NOTLIVE' } end
if not holds(unit, fence) or redis.call('HEXISTS', results, unit) == 1 then return fenced(unit, fence) end
if target ~= '' and not move(target) then return { 'CONFLICT' } end

redis.call('HSET', results, unit, ARGV[3])
redis.call('ZREM', issued, unit)
redis.call('HDEL', claims, unit)
for i, total in ipairs({ 'resources', 'bytes', 'stored' }) do
  if ARGV[7 + i] ~= '0' then
    redis.call('HINCRBY', job, total, ARGV[7 + i])
    redis.call('HINCRBY', committed, total, ARGV[7 + i])
  end
end
local at = 14
for _ = 1, tonumber(ARGV[13]) do
  redis.call('HSET', files, ARGV[at], unit)
  at = at + 1
end

local total = 0
local fresh = redis.call('ZRANGE', staged, 0, -1, 'WITHSCORES')
for i = 1, #fresh, 2 do
  redis.call('ZADD', waiting, fresh[i + 1], fresh[i])
  total = total + tonumber(fresh[i + 1]) + 1
end
redis.call('DEL', staged)
local done = 0
if tonumber(ARGV[4]) >= 0 then done = tonumber(ARGV[4]) + 1 end
progress(total, done)

for i = at, #ARGV, 2 do redis.call('HSET', job, ARGV[i], ARGV[i + 1]) end
if ARGV[11] ~= '' then index_as_ended(ARGV[11]) end
renew_ttl(ARGV[12])
return { 'OK', open_next(nextid, ARGV[7]) }
