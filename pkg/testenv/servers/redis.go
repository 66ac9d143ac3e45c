package servers

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
)

// Redis is a Redis server.
type Redis struct {
	server
	settings []string
	user     *url.Userinfo // nil: without TLS
}

// NewRedis starts a Redis server with its data in dir, which is created or empty. settings are flags such as
// "--appendonly", "yes"; without any the server stores nothing. A role that a Sentinel assigns to the server lasts over
// Kill, Wipe and Start.
func NewRedis(ctx context.Context, dir string, settings ...string) (*Redis, error) {
	return newRedis(ctx, &Redis{server: server{dir: dir}, settings: settings}, "")
}

// NewSecureRedis starts a Redis server that only accepts TLS connections, with the certificate and its key (PEM), and one
// user. The caller has to trust the certificate's authority.
func NewSecureRedis(ctx context.Context, dir string, certificate, key []byte) (*Redis, error) {
	r := &Redis{server: server{dir: dir}, user: url.UserPassword("sluice", uuid.NewString())}
	password, _ := r.user.Password()
	r.settings = []string{
		"--port", "0", "--tls-auth-clients", "no", "--tls-cert-file", "../tls.crt", "--tls-key-file", "../tls.key",
		"--user", "default", "off", "--user", r.user.Username(), "on", ">" + password, "~*", "&*", "+@all",
	}
	return newRedis(ctx, r, "", file{"tls.crt", certificate}, file{"tls.key", key})
}

// newRedis starts a server with the configuration and further files.
func newRedis(ctx context.Context, r *Redis, configuration string, more ...file) (*Redis, error) {
	r.name, r.killing, r.answers = "Redis", syscall.SIGKILL, r.ping
	r.command = func(port int) *exec.Cmd {
		// A Sentinel has the server write its role to the file. The flags are stronger than the file.
		listen := "--port"
		if r.user != nil {
			listen = "--tls-port"
		}
		args := []string{
			redisFile, listen, strconv.Itoa(port), "--bind", "127.0.0.1", "--dir", r.data(), "--save", "",
			"--maxmemory-policy", "noeviction", "--repl-diskless-sync-delay", "0",
		}
		return exec.CommandContext(context.WithoutCancel(ctx), "redis-server", append(args, r.settings...)...)
	}
	if err := r.prepare(); err != nil {
		return nil, err
	}
	err := r.write(append(more, file{redisFile, []byte(configuration)})...)
	if err := errors.Join(err, os.Mkdir(r.data(), 0o700)); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	if err := r.begin(ctx); err != nil {
		return nil, err
	}
	return r, nil
}

const redisFile = "redis.conf"

func (r *Redis) data() string { return filepath.Join(r.dir, "data") }

// URL returns redis://host:port, or a rediss:// URL of a server with TLS.
func (r *Redis) URL() string {
	if r.user == nil {
		return "redis://" + r.Addr()
	}
	return (&url.URL{Scheme: "rediss", User: r.user, Host: r.Addr(), Path: "/0"}).String()
}

// Wipe deletes the data of the killed server, so that Start starts an empty one.
func (r *Redis) Wipe() error {
	if r.Running() {
		return errors.New("a running Redis cannot be wiped")
	}
	return errors.Join(os.RemoveAll(r.data()), os.Mkdir(r.data(), 0o700))
}

// Replica starts a server that replicates from this one, and returns when it has its data. settings are as for NewRedis.
func (r *Redis) Replica(ctx context.Context, dir string, settings ...string) (*Redis, error) {
	// In the file, so that a Sentinel can change it.
	role := fmt.Sprintf("replicaof 127.0.0.1 %d\n", r.port)
	replica, err := newRedis(ctx, &Redis{server: server{dir: dir}, settings: settings}, role)
	if err != nil {
		return nil, err
	}
	if err := replica.await(ctx, "replicate", func(ctx context.Context) error {
		info, err := replica.info(ctx, "replication")
		if err == nil && info["master_link_status"] != "up" {
			return errors.New("its link to the primary is down")
		}
		return err
	}); err != nil {
		return nil, errors.Join(err, replica.Close())
	}
	return replica, nil
}

// do calls a function with a client of the server. A new client has no connections to a server that was killed since.
func (r *Redis) do(call func(*redis.Client) error) error {
	options, err := redis.ParseURL(r.URL())
	if err != nil {
		return err
	}
	options.MaxRetries, options.DialerRetries = -1, 1 // the caller repeats the call
	if r.user != nil {
		options.TLSConfig = &tls.Config{InsecureSkipVerify: true} // its certificate may be invalid on purpose
	}
	client := redis.NewClient(options)
	defer client.Close()
	return call(client)
}

func (r *Redis) ping(ctx context.Context) error {
	return r.do(func(client *redis.Client) error { return client.Ping(ctx).Err() })
}

// info returns a section of the command INFO.
func (r *Redis) info(ctx context.Context, section string) (map[string]string, error) {
	found := map[string]string{}
	return found, r.do(func(client *redis.Client) error {
		text, err := client.Info(ctx, section).Result()
		for line := range strings.Lines(text) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), ":")
			found[key] = value
		}
		return err
	})
}
