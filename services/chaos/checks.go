package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/sluice-fhir/sluice/pkg/jobs"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
	"github.com/sluice-fhir/sluice/pkg/objects"
	"github.com/sluice-fhir/sluice/pkg/queue"
)

// use is what a process uses.
type use struct {
	open       int // descriptors of a service, connections to a server
	goroutines int
	memory     int // MiB resident
}

// measure returns what each service uses, and how many connections the servers have.
func (s *system) measure(ctx context.Context) (map[string]use, error) {
	uses := map[string]use{}
	for _, each := range s.services {
		pid, address, err := each.place()
		if err != nil {
			return nil, err
		}
		open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		if err != nil {
			return nil, err
		}
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
		if err != nil {
			return nil, err
		}
		pages, err := strconv.Atoi(strings.Fields(string(status))[1])
		if err != nil {
			return nil, err
		}
		routines, err := metric(ctx, address, "go_goroutines")
		if err != nil {
			return nil, err
		}
		uses[each.name] = use{len(open), routines, pages * os.Getpagesize() >> 20}
	}
	cache := redis.NewClient(&redis.Options{Addr: s.redis.Addr()})
	defer cache.Close()
	clients, err := cache.ClientList(ctx).Result()
	if err != nil {
		return nil, err
	}
	uses[toRedis] = use{open: strings.Count(clients, "\n")}
	backends, err := s.postgres.Backends(ctx)
	uses[toPostgres] = use{open: backends}
	return uses, err
}

// metric reads one metric of a service.
func metric(ctx context.Context, address, name string) (int, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/metrics", nil)
	if err != nil {
		return 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		if text, is := strings.CutPrefix(lines.Text(), name+" "); is {
			return strconv.Atoi(text)
		}
	}
	return 0, errors.Join(fmt.Errorf("%s has no metric %s", address, name), lines.Err())
}

// check waits until all jobs are purged, and checks that nothing is left of them. What it finds is a violation.
func (s *system) check(ctx context.Context, before map[string]use) error {
	client := redis.NewClient(&redis.Options{Addr: s.redis.Addr()})
	defer client.Close()
	bucket, err := s.bucket()
	if err != nil {
		return err
	}
	defer bucket.Close()
	if s.opts.silence > 0 { // a short run does not wait for the minute after which they are removed
		if err := s.cancelUnconfirmed(ctx); err != nil {
			return err
		}
	}
	wait := s.opts.retention + 2*time.Minute
	over := time.Now().Add(wait)
	for told := time.Now(); ; {
		keys, err := leftKeys(ctx, client)
		if err != nil {
			return err
		}
		if s.opts.silence > 0 { // nor until Asynq finds the tasks of killed workers, which may take it a minute and a half
			keys = slices.DeleteFunc(keys, func(key string) bool { return strings.HasPrefix(key, "asynq:") })
		}
		var files []string
		err = bucket.List(ctx, "", func(o objects.Info) error { files = append(files, o.Key); return nil })
		if err == nil {
			err = bucket.Uploads(ctx, func(u objects.Upload) error { files = append(files, "upload of "+u.Key); return nil })
		}
		if err != nil {
			return err
		}
		if len(keys)+len(files) == 0 {
			break
		}
		if time.Now().After(over) {
			s.events.violated("%v after the last export: %d keys are left in Redis, such as %v, and %d objects, such as %v",
				wait, len(keys), some(keys), len(files), some(files))
			break
		}
		if time.Since(told) > 15*time.Second {
			told = time.Now()
			s.events.say("%d keys are left, such as %v, and %d objects", len(keys), some(keys), len(files))
		}
		if err := pause(ctx, 2*time.Second); err != nil {
			return err
		}
	}
	if err := s.checkUses(ctx, before); err != nil {
		return err
	}
	return s.checkAudit(ctx)
}

// bucket opens the bucket, past the links.
func (s *system) bucket() (*objects.Store, error) {
	return objects.Open(objects.Config{
		Endpoint: s.store.Endpoint(), AccessKey: s.store.AccessKey(), SecretKey: s.store.SecretKey(), Bucket: bucket,
	})
}

// cancelUnconfirmed cancels the jobs whose kick-off was never confirmed.
func (s *system) cancelUnconfirmed(ctx context.Context) error {
	store, err := jobstore.Open(s.redis.URL(), nil)
	if err != nil {
		return err
	}
	defer store.Close()
	tasks, err := queue.Open(s.redis.URL())
	if err != nil {
		return err
	}
	defer tasks.Close()
	lifecycle := jobs.Lifecycle{Store: store, Queue: tasks, Now: time.Now}
	const many = 1000
	active, err := store.Active(ctx, 0, many)
	for _, entry := range active {
		job, failed := store.Job(ctx, entry.ID)
		if failed == nil && job.Unconfirmed {
			queueErr, cancelErr := lifecycle.Cancel(ctx, job.ID)
			err = errors.Join(err, queueErr, cancelErr)
		}
	}
	return err
}

func some(all []string) []string { return all[:min(5, len(all))] }

// kept are the keys that do not belong to jobs.
var kept = []string{
	"sluice:continue:", "sluice:committed", "sluice:outage", "sluice:swept", "sluice:signing", "sluice:auth",
	"sluice:slots", "sluice:worker:", "sluice:rate:",
	"asynq:servers", "asynq:workers", "asynq:queues", "asynq:schedulers",
}

// leftKeys lists the keys in Redis that a job has left behind, and tasks that wait.
func leftKeys(ctx context.Context, client *redis.Client) (left []string, err error) {
	scan := client.Scan(ctx, 0, "*", 1000).Iterator()
	for scan.Next(ctx) {
		key := scan.Val()
		switch {
		case strings.HasSuffix(key, "}:removed"), strings.Contains(key, ":processed:"), strings.Contains(key, ":failed:"),
			strings.HasSuffix(key, ":processed"), strings.HasSuffix(key, ":failed"),
			slices.ContainsFunc(kept, func(prefix string) bool { return strings.HasPrefix(key, prefix) }):
		case strings.HasPrefix(key, "asynq:{watch}:"), isPass(key):
			// passes come again and again
		default:
			left = append(left, key)
		}
	}
	return left, scan.Err()
}

// checkUses compares what is used with what was used at the start. Idle connections are closed after a while.
func (s *system) checkUses(ctx context.Context, before map[string]use) error {
	const idle = 2 * time.Minute
	over := time.Now().Add(idle)
	for {
		now, err := s.measure(ctx)
		if err != nil {
			return err
		}
		var more []string
		names := slices.Sorted(maps.Keys(now))
		for _, name := range names {
			was, is := before[name], now[name]
			open := 40 // idle connections of a pool are kept for half an hour
			if name == toRedis || name == toPostgres {
				open = 15 * len(s.services)
			}
			if is.open > was.open+open || is.goroutines > was.goroutines+60 || is.memory > 2*was.memory+50 {
				more = append(more, name)
			}
		}
		late := time.Now().After(over)
		if len(more) > 0 && !late {
			if err := pause(ctx, time.Second); err != nil {
				return err
			}
			continue
		}
		for _, name := range names {
			was, is := before[name], now[name]
			s.events.say("%-12s %3d descriptors or connections (%d before), %3d goroutines (%d), %3d MiB (%d)",
				name, is.open, was.open, is.goroutines, was.goroutines, is.memory, was.memory)
		}
		if len(more) > 0 {
			s.events.violated("%v use more than before", more)
		}
		return nil
	}
}

// checkAudit stops the services, and verifies their audit logs.
func (s *system) checkAudit(ctx context.Context) error {
	for _, each := range s.services {
		if err := each.stop(); err != nil {
			s.events.violated("%s: %v", each.name, err)
		}
	}
	for _, log := range s.audits {
		if err := s.sluice(ctx, "admin", "audit", "verify", log); err != nil {
			s.events.violated("audit log: %v", err)
		}
	}
	return nil
}

// isPass reports whether a key of the maintenance queue is not that of a purge.
func isPass(key string) bool {
	return strings.HasPrefix(key, "asynq:{upkeep}:") && !strings.Contains(key, ":t:purge:")
}
