package jobstore

import (
	"embed"
	"fmt"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/sluice-fhir/sluice/pkg/export"
)

//go:embed lua/*.lua
var luaFiles embed.FS

// scripts are the store's compare-and-set steps, one Lua file each. All share a prelude that names the keys of the job
// and carries the state machine as pkg/export defines it, so that there is one table of transitions.
type scripts struct {
	create, claim, heartbeat, stage, commit, issue, setback, rescue, refence, move, reopen, giveup *redis.Script

	admit, count *redis.Script // with keys of their own
}

func loadScripts() (scripts, error) {
	var errs []string
	with := func(prelude, name string) *redis.Script {
		text, err := luaFiles.ReadFile("lua/" + name + ".lua")
		if err != nil {
			errs = append(errs, err.Error())
		}
		return redis.NewScript(prelude + string(text))
	}
	prelude := luaPrelude()
	load := func(name string) *redis.Script { return with(prelude, name) }
	s := scripts{
		create: load("create"), claim: load("claim"), heartbeat: load("heartbeat"), stage: load("stage"),
		commit: load("commit"), issue: load("issue"), setback: load("setback"), rescue: load("rescue"),
		refence: load("refence"), move: load("move"), reopen: load("reopen"), giveup: load("giveup"),
		admit: with(luaClock, "admit"), count: with("", "count"),
	}
	if len(errs) > 0 {
		return scripts{}, fmt.Errorf("load scripts: %s", strings.Join(errs, "; "))
	}
	return s, nil
}

const luaClock = `
-- clock is the server's own time in ms, so that no two machines have to agree on it, unless the caller brings one.
local function clock(given)
  if given ~= '' then return tonumber(given) end
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end
`

func luaPrelude() string {
	var b strings.Builder
	for i, name := range jobKeys {
		fmt.Fprintf(&b, "local %s = KEYS[%d]\n", name, i+1)
	}
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
	b.WriteString(luaClock)
	b.WriteString(`
local function live() return LIVE[redis.call('HGET', job, 'state') or ''] == true end
local function move(target)
  if not BEFORE[target][redis.call('HGET', job, 'state') or ''] then return false end
  redis.call('HSET', job, 'state', target)
  return true
end
local function holds(unit, fence)
  return redis.call('HGET', fences, unit) == fence and redis.call('HGET', claims, unit) == fence
end
-- unstage forgets the units that an attempt has cut and not committed.
local function unstage()
  for _, id in ipairs(redis.call('ZRANGE', staged, 0, -1)) do
    redis.call('HDEL', units, id)
    redis.call('HDEL', fences, id)
  end
  redis.call('DEL', staged)
end
-- progress adds to the weights of the job. The percentage that is told never goes back.
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
