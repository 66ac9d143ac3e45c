package jobstore

import (
	"embed"
	"fmt"
	"slices"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/sluice-fhir/sluice/pkg/export"
)

//go:embed lua/*.lua
var luaFiles embed.FS

// scripts are the compare-and-set steps of the store, one Lua file each. All but the last three share a prelude
// with the names of the keys and the transitions of pkg/export, so that the state machine is defined only once.
type scripts struct {
	create, queued, claim, heartbeat, stage, commit, issue, release, rescue, refence, reopen, giveup *redis.Script
	end, remove, refile                                                                              *redis.Script

	count, reachable, earliest *redis.Script // have a key of their own
}

func loadScripts() (scripts, error) {
	var s scripts
	prelude := luaPrelude()
	for name, script := range map[string]**redis.Script{
		"create": &s.create, "queued": &s.queued, "claim": &s.claim, "heartbeat": &s.heartbeat, "stage": &s.stage,
		"commit": &s.commit, "issue": &s.issue, "release": &s.release, "rescue": &s.rescue, "refence": &s.refence,
		"reopen": &s.reopen, "giveup": &s.giveup, "end": &s.end, "remove": &s.remove, "refile": &s.refile, "count": &s.count,
		"reachable": &s.reachable, "earliest": &s.earliest,
	} {
		text, err := luaFiles.ReadFile("lua/" + name + ".lua")
		if err != nil {
			return scripts{}, fmt.Errorf("load scripts: %w", err)
		}
		if script == &s.count || script == &s.reachable || script == &s.earliest {
			*script = redis.NewScript(luaClock + string(text))
		} else {
			*script = redis.NewScript(luaClock + prelude + string(text))
		}
	}
	return s, nil
}

const luaClock = `
-- clock is the server's own time in ms, so that no two machines have to agree on it, unless a test passes one.
local function clock(given)
  if given ~= '' then return tonumber(given) end
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end
`

func luaPrelude() string {
	var b strings.Builder
	for i, name := range append(slices.Clone(jobKeys), "removed", "active", "due", "committed", "outage") {
		fmt.Fprintf(&b, "local %s = KEYS[%d]\n", name, i+1)
	}
	fmt.Fprintf(&b, "local JOBKEYS = { unpack(KEYS, 1, %d) }\n", len(jobKeys))
	fmt.Fprintf(&b, "local SAFETY = %d\n", safetyTTL.Milliseconds())
	b.WriteString("local LIVE, BEFORE = {}, {}\n")
	for _, state := range export.States() {
		if state.Live() {
			fmt.Fprintf(&b, "LIVE[%q] = true\n", state)
		}
		fmt.Fprintf(&b, "BEFORE[%q] = {}\n", state)
		for _, from := range state.Before() {
			fmt.Fprintf(&b, "BEFORE[%q][%q] = true\n", state, from)
		}
	}
	b.WriteString(`
local ID = string.match(job, '{(.+)}')
-- running_of is the set of an owner's jobs that count against its limit. Members are "<job id> <fingerprint>".
local function running_of(owner) return 'sluice:running:' .. owner end
-- What an owner's finished jobs hold: when they expire, and their stored bytes with the sum under 'total' (held.lua).
local function finished_of(owner) return 'sluice:finished:' .. owner end
local function stored_of(owner) return 'sluice:stored:' .. owner end
-- free_place gives the job's place among its owner's running jobs, and what it holds as a finished one, back.
local function free_place()
  local owner = redis.call('HGET', job, 'owner_key')
  if not owner then return end
  redis.call('ZREM', running_of(owner), ID .. ' ' .. redis.call('HGET', job, 'fingerprint'))
  redis.call('ZREM', finished_of(owner), ID)
  local bytes = redis.call('HGET', stored_of(owner), ID) or '0'
  redis.call('HDEL', stored_of(owner), ID)
  if bytes ~= '0' then redis.call('HINCRBY', stored_of(owner), 'total', '-' .. bytes) end
  if redis.call('HLEN', stored_of(owner)) == 1 then redis.call('DEL', stored_of(owner)) end -- only the total is left
end
-- hold adds a finished job to what its owner holds. A failed one has no files.
local function hold(expires)
  local owner, state = redis.call('HGET', job, 'owner_key'), redis.call('HGET', job, 'state')
  if not owner or state ~= 'completed' and state ~= 'failed' then return end
  local bytes = state == 'completed' and redis.call('HGET', job, 'stored') or '0'
  redis.call('ZADD', finished_of(owner), expires, ID)
  redis.call('HSET', stored_of(owner), ID, bytes)
  redis.call('HINCRBY', stored_of(owner), 'total', bytes)
  for _, name in ipairs({ finished_of(owner), stored_of(owner) }) do redis.call('PEXPIRE', name, SAFETY) end
end
-- index_as_ended moves an ended job from the active to the due index.
local function index_as_ended(at)
  redis.call('ZADD', due, at, ID)
  redis.call('ZREM', active, ID)
  free_place()
  hold(at)
end
-- renew_ttl sets the safety TTL: a job whose purge never comes must not stay in Redis for ever. The TTL of polls is its
-- window.
local function renew_ttl(ms)
  for _, name in ipairs(JOBKEYS) do
    if name ~= polls then redis.call('PEXPIRE', name, ms) end
  end
end
local function live() return LIVE[redis.call('HGET', job, 'state') or ''] == true end
local function move(target)
  if not BEFORE[target][redis.call('HGET', job, 'state') or ''] then return false end
  redis.call('HSET', job, 'state', target)
  return true
end
-- holds reports whether the unit is the caller's. If its worker was taken for lost and nobody has claimed the unit since,
-- the caller is that worker, which was stopped or cut off, and gets the unit back: its work is not lost, and the loss is
-- no attempt.
local function holds(unit, fence)
  local current = redis.call('HGET', fences, unit)
  if current == fence and redis.call('HGET', claims, unit) == fence then return true end
  if current ~= string.format('%.0f', fence + 1) or redis.call('HGET', attempts, unit .. '.cause') ~= 'lost'
    or redis.call('HEXISTS', claims, unit) == 1 or redis.call('HEXISTS', results, unit) == 1 then
    return false
  end
  redis.call('HSET', fences, unit, fence)
  redis.call('HSET', claims, unit, fence)
  redis.call('HINCRBY', attempts, unit, -1)
  redis.call('HSET', attempts, unit .. '.cause', 'unavailable')
  return true
end
-- fenced refuses a stale fence. If the unit's worker was lost, the caller is that worker and not the unit's victim, so the
-- loss is no attempt. That is so at most ten times, because a unit may be what stops its workers.
local function fenced(unit, fence)
  if redis.call('HGET', attempts, unit .. '.cause') == 'lost'
    and redis.call('HGET', claims, unit .. '.task') == string.format('%.0f', fence + 1)
    and redis.call('HINCRBY', attempts, unit .. '.returned', 1) <= 10 then
    redis.call('HINCRBY', attempts, unit, -1)
    if redis.call('HEXISTS', claims, unit) == 1 then
      redis.call('HSET', attempts, unit .. '.cause', 'unavailable')
    else
      redis.call('HDEL', claims, unit .. '.task') -- the next worker was lost too; the cause lets it have the unit back
    end
  end
  return { 'FENCED' }
end
-- unstage forgets the units that an attempt has cut and not committed.
local function unstage()
  for _, id in ipairs(redis.call('ZRANGE', staged, 0, -1)) do
    redis.call('HDEL', units, id)
    redis.call('HDEL', fences, id)
  end
  redis.call('DEL', staged)
end
-- progress adds to the weights of the job. The percentage never decreases.
local function progress(more_total, more_done)
  local total = tonumber(redis.call('HGET', job, 'weight_total') or '0') + more_total
  local done = tonumber(redis.call('HGET', job, 'weight_done') or '0') + more_done
  redis.call('HSET', job, 'weight_total', string.format('%.0f', total), 'weight_done', string.format('%.0f', done))
  if total > 0 then
    local percent = math.min(99, math.floor(99 * done / total))
    if percent > tonumber(redis.call('HGET', job, 'percent') or '0') then redis.call('HSET', job, 'percent', percent) end
  end
end
-- open_next opens the next unit if no unit is open, and returns how many were.
local function open_next(unit, spec)
  local open = redis.call('ZCARD', waiting) + redis.call('ZCARD', issued)
  if open == 0 and unit ~= '' then
    redis.call('HSETNX', units, unit, spec)
    redis.call('HSETNX', fences, unit, 1)
    redis.call('ZADD', waiting, 0, unit)
  end
  return open
end
`)
	return b.String()
}
