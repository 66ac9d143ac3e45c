package httpapi_test

import (
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/objects"
)

// wordStart precedes each word of a Redis command except the first.
var wordStart = regexp.MustCompile(`\r\n\$\d+\r\n`)

// commands returns the Redis commands since Listen, without the handshakes of new connections: whether a connection exists
// does not depend on the request.
func (d *door) commands() (all []string) {
	d.mu.Lock()
	text := wordStart.ReplaceAllString(string(d.heard), " ")
	d.mu.Unlock()
	for line := range strings.Lines(text) { // "*2 get key"
		_, command, _ := strings.Cut(strings.TrimSuffix(line, "\r\n"), " ")
		name, rest, _ := strings.Cut(command, " ")
		name = strings.ToUpper(name)
		if !slices.Contains([]string{"HELLO", "CLIENT", "AUTH", "SELECT", "PING"}, name) {
			all = append(all, name+" "+rest)
		}
	}
	return all
}

// listen starts a record of the requests of the API to its stores.
func (w *fixture) listen() {
	w.jobDoor.Listen()
	w.queueDoor.Listen()
	w.objectDoor.Listen()
}

// trail returns the requests of the API to its stores since listen: the commands to the job store and to the queue, and the
// number of bytes to the object store. The job's id is replaced by JOB.
func (w *fixture) trail(id string) string {
	w.t.Helper()
	w.objectDoor.mu.Lock()
	objects := len(w.objectDoor.heard)
	w.objectDoor.mu.Unlock()
	text := fmt.Sprintf("job store %q, queue %q, object store %d bytes",
		w.jobDoor.commands(), w.queueDoor.commands(), objects)
	return strings.ReplaceAll(text, id, "JOB")
}

// holdings returns the content of Redis and the bucket, with every value and every expiry.
func (w *fixture) holdings() map[string]string {
	w.t.Helper()
	ctx := w.t.Context()
	client := w.redis()
	held := map[string]string{}
	keys, err := client.Keys(ctx, "*").Result()
	w.must(err)
	for _, key := range keys {
		if strings.HasPrefix(key, "sluice:rate:kickoff:") { // counters of all requests
			continue
		}
		expires, err := client.PExpireTime(ctx, key).Result()
		w.must(err)
		held[key] = fmt.Sprintf("%s until %s", contentOf(w.t, client, key), expires)
	}
	err = w.objects.List(ctx, export.JobsPrefix, func(object objects.Info) error {
		held[object.Key] = fmt.Sprintf("%+v", object)
		return nil
	})
	w.must(err)
	return held
}

// contentOf reads a key of any type. (The output of DUMP depends on the internal order of a hash.)
func contentOf(t testing.TB, client *redis.Client, key string) string {
	t.Helper()
	kind, err := client.Type(t.Context(), key).Result()
	must(t, err)
	var value any
	switch kind {
	case "string":
		value, err = client.Get(t.Context(), key).Result()
	case "hash":
		value, err = client.HGetAll(t.Context(), key).Result()
	case "zset":
		value, err = client.ZRangeWithScores(t.Context(), key, 0, -1).Result()
	case "list":
		value, err = client.LRange(t.Context(), key, 0, -1).Result()
	case "set":
		value, err = client.SMembersMap(t.Context(), key).Result()
	default:
		t.Fatalf("%s is of the kind %s", key, kind)
	}
	must(t, err)
	return fmt.Sprintf("%s %+v", kind, value)
}

// wantUntouched checks that the content of the stores has not changed.
func (w *fixture) wantUntouched(before map[string]string) {
	w.t.Helper()
	after := w.holdings()
	keys := maps.Clone(before)
	maps.Copy(keys, after)
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		if after[key] != before[key] {
			w.t.Errorf("%s was changed:\n%s\n%s", key, before[key], after[key])
		}
	}
}

// plainHeader returns the header without the fields that differ in every response.
func plainHeader(header http.Header) string {
	header = header.Clone()
	header.Del("Date")
	header.Del("X-Request-Id")
	return fmt.Sprintf("%q", header)
}
