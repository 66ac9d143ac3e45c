package servers

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"
)

// MasterName is the name by which a Sentinel knows its Redis.
const MasterName = "sluice"

// Sentinel is a Redis Sentinel that alone decides about failovers (quorum 1). What it knows lasts over Kill and Start. It
// does nothing for 30 s after it has not run for 2 s, such as after Pause, because it distrusts its clock then.
type Sentinel struct{ server }

// NewSentinel starts a Sentinel with its data in dir, which is created or empty. It promotes a replica when the master has
// not answered for the time down. NewSentinel returns when the Sentinel knows the master and its present replicas. It finds
// later ones within 10 s.
func NewSentinel(ctx context.Context, dir string, master *Redis, down time.Duration) (*Sentinel, error) {
	s := &Sentinel{server{name: "Sentinel", dir: dir, killing: syscall.SIGKILL}}
	s.answers = func(ctx context.Context) error {
		return s.do(func(client *redis.SentinelClient) error { return client.Ping(ctx).Err() })
	}
	s.command = func(port int) *exec.Cmd {
		return exec.CommandContext(context.WithoutCancel(ctx), "redis-server", sentinelFile, "--sentinel",
			"--port", strconv.Itoa(port), "--bind", "127.0.0.1", "--dir", s.dir)
	}
	if err := s.prepare(); err != nil {
		return nil, err
	}
	if err := s.write(file{sentinelFile, fmt.Appendf(nil, `sentinel monitor %[1]s 127.0.0.1 %[2]d 1
sentinel down-after-milliseconds %[1]s %[3]d
sentinel failover-timeout %[1]s %[4]d
`, MasterName, master.port, down.Milliseconds(), max(3*down, 3*time.Second).Milliseconds())}); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	if err := s.begin(ctx); err != nil {
		return nil, err
	}
	if err := s.await(ctx, "know the replicas", func(ctx context.Context) error {
		info, err := master.info(ctx, "replication")
		if err != nil {
			return err
		}
		return s.do(func(client *redis.SentinelClient) error {
			known, err := client.Master(ctx, MasterName).Result()
			if err == nil && (known["flags"] != "master" || known["num-slaves"] != info["connected_slaves"]) {
				return fmt.Errorf("it knows %s replicas, the master has %s", known["num-slaves"], info["connected_slaves"])
			}
			return err
		})
	}); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

const sentinelFile = "sentinel.conf"

// Master returns the address of the present master, host:port.
func (s *Sentinel) Master(ctx context.Context) (addr string, err error) {
	err = s.do(func(client *redis.SentinelClient) error {
		found, err := client.GetMasterAddrByName(ctx, MasterName).Result()
		if err == nil && len(found) != 2 {
			return errors.New("the Sentinel does not know a master")
		}
		if err == nil {
			addr = net.JoinHostPort(found[0], found[1])
		}
		return err
	})
	return addr, err
}

func (s *Sentinel) do(call func(*redis.SentinelClient) error) error {
	client := redis.NewSentinelClient(&redis.Options{Addr: s.Addr(), MaxRetries: -1, DialerRetries: 1})
	defer client.Close()
	return call(client)
}
