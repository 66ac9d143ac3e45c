package e2e

import (
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
	"github.com/sluice-fhir/sluice/pkg/objects/objectstest"
	"github.com/sluice-fhir/sluice/pkg/testenv"
	"github.com/sluice-fhir/sluice/services/e2e/check"
	"github.com/sluice-fhir/sluice/services/e2e/expect"
)

// redisProxy passes connections to Redis. During an outage it closes them and refuses new ones.
type redisProxy struct {
	address, to string

	mu       sync.Mutex
	listener net.Listener // nil: an outage
	open     map[net.Conn]bool
}

// between begins to pass connections to the Redis at the URL, and returns the URL for the services.
func (p *redisProxy) between(t *testing.T, redis string) string {
	t.Helper()
	server, err := url.Parse(redis)
	check.Must(t, err)
	p.to, p.address = server.Host, "127.0.0.1:0"
	p.mend(t)
	t.Cleanup(p.cut)
	server.Host = p.address
	return server.String()
}

func (p *redisProxy) mend(t *testing.T) {
	t.Helper()
	listener, err := net.Listen("tcp", p.address)
	check.Must(t, err)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.listener, p.address, p.open = listener, listener.Addr().String(), map[net.Conn]bool{}
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", p.to)
			if err != nil {
				_ = client.Close()
				continue
			}
			p.mu.Lock()
			if p.listener == listener {
				p.open[client], p.open[server] = true, true
			} else {
				_, _ = client.Close(), server.Close()
			}
			p.mu.Unlock()
			pass := func(to, from net.Conn) {
				_, _ = io.Copy(to, from)
				_, _ = to.Close(), from.Close()
				p.mu.Lock()
				defer p.mu.Unlock()
				delete(p.open, from)
			}
			go pass(client, server)
			go pass(server, client)
		}
	}()
}

// cut begins an outage.
func (p *redisProxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.listener == nil {
		return
	}
	_ = p.listener.Close()
	p.listener = nil
	for connection := range p.open {
		_ = connection.Close()
	}
}

func TestAnOutageOfRedisInTheMiddleOfAnExport(t *testing.T) { // pitfalls 8, 13, 27
	t.Parallel()
	for name, die := range map[string]bool{"every worker lives": false, "a worker dies meanwhile": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			exportThroughAnOutageOfRedis(t, 6*time.Second, 4*time.Second, die)
		})
	}
}

// exportThroughAnOutageOfRedis takes Redis away in the middle of an export, for longer than the silence after which a unit
// is lost. At that time some units are committed, the Observation unit ends during the outage, and the Patient unit ends
// long after it, unless its worker dies during the outage.
func exportThroughAnOutageOfRedis(t *testing.T, away, silence time.Duration, die bool) {
	data := generated(t, 60)
	store := objectstest.NewProxy(t, testenv.ObjectStore(t).Endpoint)
	redis := &redisProxy{}
	s := deploy(t, setup{
		data: data, endpoint: store.Endpoint(), redis: redis,
		worker: []string{
			"SLUICE_WORKER_CONCURRENCY=1", "SLUICE_WORKER_EXPRESS=0", "SLUICE_UNIT_HEARTBEAT=" + (silence / 5).String(),
		},
		scheduler: []string{"SLUICE_UNIT_SILENCE=" + silence.String(), "SLUICE_RESCUE_EVERY=" + (silence / 7).String()},
	})
	workers := []*service{s.startWorker(), s.startWorker()} // each holds one of the two units
	for _, w := range workers {
		w.ready()
	}
	held := map[string]*gate{"Observation": newGate(), "Patient": newGate()}
	store.OnReply(func(reply *http.Response) error {
		for typ, g := range held {
			if reply.Request.Method == http.MethodPut && strings.Contains(reply.Request.URL.Path, "/"+typ+"/") {
				g.hold()
			}
		}
		return nil
	})
	status := s.kickoff("all", "")
	held["Observation"].wait(t)
	held["Patient"].wait(t)

	redis.cut()
	began := time.Now()
	close(held["Observation"].release)
	check.Eventually(t, time.Minute, "a finished unit waits for Redis", func() bool {
		return s.logged(workers, map[string]any{"msg": "waiting for Redis", "unit": "Observation-00000"}) == 1
	})
	if die {
		for _, w := range workers {
			if s.logged([]*service{w}, map[string]any{"msg": "unit claimed", "type": "Patient"}) == 1 {
				w.Kill()
			}
		}
	}
	<-time.After(away - time.Since(began))
	redis.mend(t)
	if !die {
		<-time.After(silence) // several rescues
	}
	close(held["Patient"].release)
	s.waitReady()
	m := s.wait(status, 2*time.Minute)
	t.Logf("the export ended %.1f s after the end of an outage of %s", time.Since(began.Add(away)).Seconds(), away)

	population := expect.Read(t, data)
	expect.SameLines(t, "after the outage", s.lines(m.Output), population.Export(population.Members("all")))
	if len(m.Error) != 0 {
		t.Errorf("errors: %v", m.Error)
	}
	jobs, err := jobstore.Open(s.redis, nil)
	check.Must(t, err)
	defer jobs.Close()
	detail, err := jobs.Inspect(t.Context(), export.JobID(status[strings.LastIndex(status, "/")+1:]))
	check.Must(t, err)
	for _, unit := range detail.Units {
		lost := 0
		if die && unit.Unit.ID == "Patient-00000" {
			lost = 1
		}
		claims := s.logged(workers, map[string]any{"msg": "unit claimed", "unit": string(unit.Unit.ID)})
		if unit.Attempts != lost || claims != 1+lost {
			t.Errorf("%s: %d failures, claimed %d times; want %d failures", unit.Unit.ID, unit.Attempts, claims, lost)
		}
	}
}

// logged counts the log entries of the processes with these values.
func (s *stack) logged(processes []*service, want map[string]any) (count int) {
	for _, p := range processes {
		p.Find(func(entry map[string]any) bool {
			for key, value := range want {
				if entry[key] != value {
					return false
				}
			}
			count++
			return false
		})
	}
	return count
}
