package authstore_test

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/sluice-fhir/sluice/pkg/authstore"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/testenv"
)

func newClock() *testenv.Clock { return testenv.NewClock(time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func open(t *testing.T, url string, now func() time.Time) *authstore.Store {
	t.Helper()
	s, err := authstore.Open(url, nil, now)
	must(t, err)
	t.Cleanup(func() { must(t, s.Close()) })
	return s
}

// overBoth runs the test on a real Redis and on the embedded one of the standalone server.
func overBoth(t *testing.T, test func(t *testing.T, url string)) {
	t.Run("redis", func(t *testing.T) { test(t, testenv.Redis(t)) })
	t.Run("embedded", func(t *testing.T) { test(t, "redis://"+miniredis.RunT(t).Addr()) })
}

func raw(t *testing.T, url string) *redis.Client {
	t.Helper()
	opts, err := redis.ParseURL(url)
	must(t, err)
	c := redis.NewClient(opts)
	t.Cleanup(func() { must(t, c.Close()) })
	return c
}

func TestUseOnce(t *testing.T) {
	overBoth(t, func(t *testing.T, url string) {
		s := open(t, url, nil)
		long := strings.Repeat("j", 8<<10)
		for _, test := range []struct {
			issuer, id string
			first      bool
		}{
			{"a", "1", true}, {"a", "1", false}, {"b", "1", true}, {"a", "2", true}, {"a1", "", true}, {"", "a1", true},
			{"a", long, true}, {"a", long, false}, {"a", long + "x", true},
		} {
			first, err := s.UseOnce(t.Context(), test.issuer, test.id, time.Minute)
			must(t, err)
			if first != test.first {
				t.Errorf("issuer %q, id of %d bytes: first use %v, want %v", test.issuer, len(test.id), first, test.first)
			}
		}
		c := raw(t, url)
		keys, err := c.Keys(t.Context(), "*").Result()
		must(t, err)
		for _, key := range keys {
			left, err := c.PTTL(t.Context(), key).Result()
			must(t, err)
			if len(key) > 60 || left <= 0 || left > time.Minute {
				t.Errorf("a key of %d bytes that expires in %s", len(key), left)
			}
		}
	})
}

func TestFailures(t *testing.T) {
	overBoth(t, func(t *testing.T, url string) {
		s := open(t, url, nil)
		limits := authstore.Limits{Window: time.Hour, PerAddress: 2, PerClient: 3}
		must(t, limits.Check())
		waits := func(client, address string, want bool) {
			t.Helper()
			wait, err := s.Wait(t.Context(), limits, client, address)
			must(t, err)
			if (wait > 0) != want || wait > time.Hour {
				t.Errorf("%s from %s waits %s, want to wait: %v", client, address, wait, want)
			}
		}
		fail := func(client, address string) {
			t.Helper()
			must(t, s.Failed(t.Context(), limits, client, address))
		}
		waits("c", "1", false)
		fail("c", "1")
		waits("c", "1", false)
		fail("c", "1")
		waits("c", "1", true)
		waits("other", "1", false) // failures as c do not count for other clients behind the address
		waits("c", "2", false)
		fail("c", "2")
		waits("c", "2", true)  // the client has failed too often, also from this address
		waits("c", "3", false) // this address has not failed
		waits("other", "2", false)
		keys, err := raw(t, url).Keys(t.Context(), "*").Result()
		must(t, err)
		for _, key := range keys {
			left, err := raw(t, url).PTTL(t.Context(), key).Result()
			must(t, err)
			if left <= 0 || left > time.Hour {
				t.Errorf("a count that expires in %s", left)
			}
		}
	})
	for _, bad := range []authstore.Limits{
		{}, {Window: time.Millisecond, PerAddress: 1, PerClient: 1}, {Window: 2 * time.Hour, PerAddress: 1, PerClient: 1},
		{Window: time.Minute, PerClient: 1}, {Window: time.Minute, PerAddress: 1},
	} {
		if bad.Check() == nil {
			t.Errorf("%+v is accepted", bad)
		}
	}
}

func TestClients(t *testing.T) {
	overBoth(t, func(t *testing.T, url string) {
		s := open(t, url, nil)
		is := func(err, want error) {
			t.Helper()
			if !errors.Is(err, want) {
				t.Errorf("got %v, want %v", err, want)
			}
		}
		_, err := s.Client(t.Context(), "a")
		is(err, export.ErrNotFound)
		is(s.RemoveClient(t.Context(), "a"), export.ErrNotFound)
		is(s.ReplaceClient(t.Context(), "a", []byte("x"), []byte("y")), export.ErrConflict)
		must(t, s.AddClient(t.Context(), "a", []byte("one")))
		is(s.AddClient(t.Context(), "a", []byte("two")), export.ErrConflict)
		is(s.ReplaceClient(t.Context(), "a", []byte("two"), []byte("three")), export.ErrConflict)
		must(t, s.ReplaceClient(t.Context(), "a", []byte("one"), []byte("two")))
		record, err := s.Client(t.Context(), "a")
		must(t, err)
		if string(record) != "two" {
			t.Errorf("read back %q", record)
		}
		want := map[string]string{"a": "two"}
		for i := range 500 {
			id := fmt.Sprintf("client-%d", i)
			want[id] = "record of " + id
			must(t, s.AddClient(t.Context(), id, []byte(want[id])))
		}
		must(t, s.Clients(t.Context(), func(id string, record []byte) error {
			if want[id] != string(record) {
				t.Errorf("%s is listed twice or with %q", id, record)
			}
			delete(want, id)
			return nil
		}))
		if len(want) > 0 {
			t.Errorf("%d clients are not listed", len(want))
		}
		must(t, s.RemoveClient(t.Context(), "a"))
		_, err = s.Client(t.Context(), "a")
		is(err, export.ErrNotFound)
	})
}

func TestRedisDownIsUnavailable(t *testing.T) {
	server := miniredis.RunT(t)
	s := open(t, "redis://"+server.Addr(), nil)
	keys, err := s.Keys(daily, secret)
	must(t, err)
	must(t, s.Ping(t.Context()))
	server.Close()
	limits := authstore.Limits{Window: time.Minute, PerAddress: 1, PerClient: 1}
	for name, call := range map[string]func() error{
		"ping":    func() error { return s.Ping(t.Context()) },
		"use":     func() error { _, err := s.UseOnce(t.Context(), "a", "b", time.Minute); return err },
		"wait":    func() error { _, err := s.Wait(t.Context(), limits, "a", "b"); return err },
		"failed":  func() error { return s.Failed(t.Context(), limits, "a", "b") },
		"client":  func() error { _, err := s.Client(t.Context(), "a"); return err },
		"add":     func() error { return s.AddClient(t.Context(), "a", nil) },
		"replace": func() error { return s.ReplaceClient(t.Context(), "a", nil, nil) },
		"remove":  func() error { return s.RemoveClient(t.Context(), "a") },
		"list":    func() error { return s.Clients(t.Context(), func(string, []byte) error { return nil }) },
		"keys":    func() error { _, _, err := keys.Current(t.Context()); return err },
	} {
		if err := call(); !errors.Is(err, export.ErrUnavailable) {
			t.Errorf("%s: %v, want ErrUnavailable", name, err)
		}
	}
}

// The error does not contain the URL, which may contain a password.
func TestOpenRefuses(t *testing.T) {
	_, err := authstore.Open("redis://user:password@host:port:1/x", nil, nil)
	if err == nil || strings.Contains(err.Error(), "password") {
		t.Errorf("%v", err)
	}
}

// The client of Redis repeats a command whose answer was lost. A fresh id is not refused then.
func TestUseOnceWhoseAnswerIsLost(t *testing.T) {
	overBoth(t, func(t *testing.T, redis string) {
		lost, between := losesAnAnswer(t, redis, "\r\nnx\r\n")
		s := open(t, between, nil)
		for _, want := range []bool{true, false} {
			first, err := s.UseOnce(t.Context(), "a", "1", time.Minute)
			if err != nil || first != want {
				t.Errorf("first use %v, %v, want %v", first, err, want)
			}
		}
		if !lost.Load() {
			t.Error("no answer was lost")
		}
	})
}

// losesAnAnswer passes connections to the Redis at the URL. It closes the connection of the first command that contains the
// text when Redis answers, and then sets lost.
func losesAnAnswer(t *testing.T, target, command string) (lost *atomic.Bool, between string) {
	t.Helper()
	u, err := url.Parse(target)
	must(t, err)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { must(t, listener.Close()) })
	lost = &atomic.Bool{}
	pass := func(client, server net.Conn) {
		var drop atomic.Bool
		go func() {
			defer client.Close()
			answer := make([]byte, 64<<10)
			for {
				n, err := server.Read(answer)
				if err != nil || drop.Load() {
					return
				}
				if _, err := client.Write(answer[:n]); err != nil {
					return
				}
			}
		}()
		defer server.Close()
		asked := make([]byte, 64<<10)
		for {
			n, err := client.Read(asked)
			if err != nil {
				return
			}
			if bytes.Contains(bytes.ToLower(asked[:n]), []byte(command)) && lost.CompareAndSwap(false, true) {
				drop.Store(true)
			}
			if _, err := server.Write(asked[:n]); err != nil {
				return
			}
		}
	}
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", u.Host)
			if err != nil {
				t.Error(err)
				return
			}
			go pass(client, server)
		}
	}()
	return lost, "redis://" + listener.Addr().String() + u.Path
}
