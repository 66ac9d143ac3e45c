-- ARGV: unit id, fence, clock.
-- For a unit whose task was taken from the queue and did not claim it: it gets a new fence, so that a new task can be
-- enqueued and the old one is stale.
local unit = ARGV[1]
if not live() then return { 'NOTLIVE' } end
if redis.call('HGET', fences, unit) ~= ARGV[2] or redis.call('HGET', claims, unit) == ARGV[2] then return { 'FENCED' } end
if redis.call('HEXISTS', results, unit) == 1 then return { 'FENCED' } end
redis.call('ZADD', issued, clock(ARGV[3]), unit)
return { 'OK', redis.call('HINCRBY', fences, unit, 1) }
