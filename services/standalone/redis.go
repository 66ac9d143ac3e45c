package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/gob"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/sluice-fhir/sluice/pkg/platform/rungroup"
	"github.com/sluice-fhir/sluice/pkg/redisclient"
)

const (
	// saveEvery bounds what a killed process forgets.
	saveEvery = 2 * time.Second
	// snapshotVersion is the form of the snapshot.
	snapshotVersion = 1
)

// embeddedRedis is a Redis in the memory of this process, with a random password. Its keys are read from a snapshot at
// start, and written to it every saveEvery, before objects are deleted and when it is closed. So the jobs of a snapshot
// never need an object that was deleted after it.
type embeddedRedis struct {
	server *miniredis.Miniredis
	url    string
	client *redis.Client // reads the keys
	file   string        // the snapshot

	mu    sync.Mutex
	saved []byte // the keys of the last snapshot, without their times of expiry
}

// snapshot is the content of the file.
type snapshot struct {
	Version int
	Keys    []savedKey
}

// savedKey is a key with its value.
type savedKey struct {
	Name, Kind string
	Values     []string  // of a hash and a sorted set: pairs
	Expires    time.Time // zero: never
}

// startRedis starts the server with the keys of the snapshot, if the file exists.
func startRedis(file string) (*embeddedRedis, error) {
	r := &embeddedRedis{server: miniredis.NewMiniRedis(), file: file}
	if err := r.restore(time.Now()); err != nil {
		return nil, fmt.Errorf("read the jobs of an earlier run (delete %s to start without them): %w", file, err)
	}
	password := rand.Text()
	r.server.RequireAuth(password)
	if err := r.server.StartAddr("127.0.0.1:0"); err != nil {
		return nil, fmt.Errorf("start embedded redis: %w", err)
	}
	r.url = "redis://:" + password + "@" + r.server.Addr() + "/0"
	client, err := redisclient.Open(r.url)
	if err != nil {
		r.server.Close()
		return nil, err
	}
	r.client = client
	return r, nil
}

// clock advances the time of the embedded server, which otherwise does not expire keys.
func (r *embeddedRedis) clock() rungroup.Component {
	const tick = 100 * time.Millisecond
	return rungroup.Every("redis clock", tick, func(context.Context) error {
		r.server.FastForward(tick)
		return nil
	})
}

// saving writes snapshots until the context ends. An error of one is logged; the next may succeed.
func (r *embeddedRedis) saving(log *slog.Logger) rungroup.Component {
	return rungroup.Every("redis snapshots", saveEvery, func(ctx context.Context) error {
		if err := r.save(ctx); err != nil && ctx.Err() == nil {
			log.Error("the jobs are not saved: a restart would lose the newest", "err", err)
		}
		return nil
	})
}

// close writes the last snapshot and stops the server.
func (r *embeddedRedis) close(ctx context.Context) error {
	err := errors.Join(r.save(context.WithoutCancel(ctx)), r.client.Close()) // the process is ending
	r.server.Close()
	return err
}

// keysScript returns all keys with their values and remaining milliseconds, as of one moment. The processes of Asynq are
// left out: they end with this process, and change all the time.
var keysScript = redis.NewScript(`
local keys = {}
for _, name in ipairs(redis.call('KEYS', '*')) do
  if not (string.find(name, '^asynq:servers') or string.find(name, '^asynq:workers')) then
    local kind = redis.call('TYPE', name).ok
    local values
    if kind == 'string' then values = {redis.call('GET', name)}
    elseif kind == 'hash' then values = redis.call('HGETALL', name)
    elseif kind == 'list' then values = redis.call('LRANGE', name, 0, -1)
    elseif kind == 'set' then values = redis.call('SMEMBERS', name)
    elseif kind == 'zset' then values = redis.call('ZRANGE', name, 0, -1, 'WITHSCORES')
    else return redis.error_reply('a key has the unknown type ' .. kind) end
    keys[#keys + 1] = {name, kind, redis.call('PTTL', name), values}
  end
end
return keys`)

// save replaces the snapshot, unless no value has changed.
func (r *embeddedRedis) save(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	found, err := keysScript.Run(ctx, r.client, nil).Slice()
	if err != nil {
		return fmt.Errorf("read the keys of the embedded redis: %w", err)
	}
	current := snapshot{Version: snapshotVersion, Keys: make([]savedKey, len(found))}
	expires := make([]time.Time, len(found))
	for i, each := range found {
		var left int64
		if current.Keys[i], left, err = parseKey(each); err != nil {
			return err
		}
		if left >= 0 {
			expires[i] = now.Add(time.Duration(left) * time.Millisecond)
		}
	}
	values, err := encode(current)
	if err != nil || bytes.Equal(values, r.saved) {
		return err
	}
	for i := range current.Keys {
		current.Keys[i].Expires = expires[i]
	}
	content, err := encode(current)
	if err != nil {
		return err
	}
	if err := replaceFile(r.file, content); err != nil {
		return fmt.Errorf("write the snapshot of the jobs: %w", err)
	}
	r.saved = values
	return nil
}

// parseKey reads one row of keysScript. left is the remaining milliseconds, negative for a key that does not expire.
func parseKey(row any) (key savedKey, left int64, err error) {
	fields, ok := row.([]any)
	if !ok || len(fields) != 4 {
		return key, 0, errors.New("unexpected answer of the embedded redis")
	}
	var named, typed, timed bool
	key.Name, named = fields[0].(string)
	key.Kind, typed = fields[1].(string)
	left, timed = fields[2].(int64)
	values, listed := fields[3].([]any)
	if !named || !typed || !timed || !listed {
		return key, 0, errors.New("unexpected answer of the embedded redis")
	}
	key.Values = make([]string, len(values))
	for i, value := range values {
		if key.Values[i], ok = value.(string); !ok {
			return key, 0, errors.New("unexpected answer of the embedded redis")
		}
	}
	return key, left, nil
}

func encode(s snapshot) ([]byte, error) {
	var content bytes.Buffer
	if err := gob.NewEncoder(&content).Encode(s); err != nil {
		return nil, fmt.Errorf("encode the snapshot of the jobs: %w", err)
	}
	return content.Bytes(), nil
}

// restore reads the snapshot into the server, without the keys that have expired since.
func (r *embeddedRedis) restore(now time.Time) error {
	content, err := os.ReadFile(r.file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var s snapshot
	if err := gob.NewDecoder(bytes.NewReader(content)).Decode(&s); err != nil {
		return fmt.Errorf("damaged: %w", err)
	}
	if s.Version != snapshotVersion {
		return fmt.Errorf("version %d, this program has %d", s.Version, snapshotVersion)
	}
	for _, key := range s.Keys {
		if !key.Expires.IsZero() && !key.Expires.After(now) {
			continue
		}
		if err := r.put(key); err != nil {
			return fmt.Errorf("damaged: %w", err)
		}
		if !key.Expires.IsZero() {
			r.server.SetTTL(key.Name, key.Expires.Sub(now))
		}
	}
	return nil
}

func (r *embeddedRedis) put(key savedKey) (err error) {
	pairs := key.Kind == "hash" || key.Kind == "zset"
	if len(key.Values) == 0 || pairs && len(key.Values)%2 != 0 {
		return errors.New("a key has no value")
	}
	switch key.Kind {
	case "string":
		return r.server.Set(key.Name, key.Values[0])
	case "hash":
		r.server.HSet(key.Name, key.Values...)
	case "list":
		_, err = r.server.Push(key.Name, key.Values...)
	case "set":
		_, err = r.server.SAdd(key.Name, key.Values...)
	case "zset":
		for i := 0; i < len(key.Values) && err == nil; i += 2 {
			var score float64
			if score, err = strconv.ParseFloat(key.Values[i+1], 64); err == nil {
				_, err = r.server.ZAdd(key.Name, score, key.Values[i])
			}
		}
	default:
		err = errors.New("a key has an unknown type")
	}
	return err
}

// replaceFile replaces a file in one step: after a crash it has the old content or the new.
func replaceFile(path string, content []byte) (err error) {
	file, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(content)
	if err == nil {
		err = file.Sync()
	}
	if err = errors.Join(err, file.Close()); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// secret returns the base64 of the 32 random bytes in a file of the state folder. It creates a file that does not exist.
func secret(path string) (string, error) {
	content, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		random := make([]byte, 32)
		_, _ = rand.Read(random) // never fails
		text := base64.StdEncoding.EncodeToString(random)
		return text, replaceFile(path, []byte(text+"\n"))
	}
	if err != nil {
		return "", err
	}
	text := strings.TrimSpace(string(content))
	if decoded, err := base64.StdEncoding.DecodeString(text); err != nil || len(decoded) != 32 {
		return "", fmt.Errorf("%s is damaged", path)
	}
	return text, nil
}
