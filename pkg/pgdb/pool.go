package pgdb

import (
	"bufio"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math"
	"net"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/platform/telemetry"
)

// Config says where the database is and how to talk to it.
type Config struct {
	URL         string            // postgres://user:password@host:port/database?sslmode=verify-full
	Connections int               // at most; default: what pgx takes
	Settings    map[string]string // of every session, such as jit=off
	ReadBuffer  int               // bytes read from a connection at once; default: what pgx takes
	Roots       *x509.CertPool    // for an sslmode of verify-full without sslrootcert; nil: the system's
	Observe     telemetry.Observer
}

// Open returns a pool. No connection is made yet. An error names nothing of the URL: it may hold a password.
func Open(ctx context.Context, cfg Config) (*pgxpool.Pool, error) {
	parsed, err := pgxpool.ParseConfig(cfg.URL)
	if err != nil {
		return nil, notURL(err)
	}
	secure(&parsed.ConnConfig.Config, cfg.Roots)
	if cfg.Connections > 0 {
		parsed.MaxConns = int32(min(cfg.Connections, math.MaxInt32))
	}
	maps.Copy(parsed.ConnConfig.RuntimeParams, cfg.Settings)
	if _, named := parsed.ConnConfig.RuntimeParams["application_name"]; !named {
		parsed.ConnConfig.RuntimeParams["application_name"] = "sluice"
	}
	if cfg.Observe != nil {
		parsed.ConnConfig.Tracer = observed{cfg.Observe}
	}
	if cfg.ReadBuffer > 0 {
		parsed.ConnConfig.BuildFrontend = func(r io.Reader, w io.Writer) *pgproto3.Frontend {
			return pgproto3.NewFrontend(bufio.NewReaderSize(r, cfg.ReadBuffer), w)
		}
	}
	pool, err := pgxpool.NewWithConfig(ctx, parsed)
	if err != nil {
		return nil, fmt.Errorf("open pool of PostgreSQL connections: %w", err)
	}
	return pool, nil
}

// CheckURL returns the error that Open would have with the URL, also about the files that it names.
func CheckURL(url string) error {
	if _, err := pgxpool.ParseConfig(url); err != nil {
		return notURL(err)
	}
	return nil
}

// notURL says what is wrong with a URL, without the URL and without the names of files that it may hold.
func notURL(err error) error {
	var file *fs.PathError
	if errors.As(err, &file) {
		return fmt.Errorf("a file that the URL of the PostgreSQL database names: %w", file.Err)
	}
	return errors.New("not the URL of a PostgreSQL database")
}

// Wrap says what was done when err came, without the values that PostgreSQL quotes in its details, and marks it as
// export.ErrUnavailable when it is an outage: the server cannot be reached, goes down, has no connection left or
// breaks off. nil stays nil; the context's own errors stay what they are.
func Wrap(act string, err error) error {
	if err == nil {
		return nil
	}
	// A connection that is not made in time ends like a context whose time is over, although the caller's is not.
	var connect *pgconn.ConnectError
	if errors.As(err, &connect) && errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%s: %w: %w", act, export.ErrUnavailable, errTimeout)
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%s: %w", act, err)
	}
	var told *pgconn.PgError
	switch {
	case errors.As(err, &told) && outage(told.Code):
		return fmt.Errorf("%s: %w: postgres says %s", act, export.ErrUnavailable, told.Code)
	case told != nil && quotable(told.Code):
		return fmt.Errorf("%s: postgres says %s: %s", act, told.Code, told.Message)
	case told != nil:
		return fmt.Errorf("%s: postgres says %s", act, told.Code)
	case broken(err):
		return fmt.Errorf("%s: %w: %w", act, export.ErrUnavailable, err)
	}
	return fmt.Errorf("%s: %w", act, err)
}

var errTimeout = errors.New("the connection was not made in time")

// outage reports whether an error code of the server will pass without anybody mending the query: connection
// exceptions (08), lack of resources (53), shutdown and recovery (57P), I/O errors (58), serialization failures (40).
func outage(code string) bool {
	return strings.HasPrefix(code, "08") || strings.HasPrefix(code, "53") || strings.HasPrefix(code, "57P") ||
		strings.HasPrefix(code, "58") || strings.HasPrefix(code, "40")
}

// quotable reports whether the server's message can only hold names of ours: of the query (42), the database (3D) or
// the user (28).
func quotable(code string) bool {
	return strings.HasPrefix(code, "42") || strings.HasPrefix(code, "3D") || strings.HasPrefix(code, "28")
}

// broken reports whether the connection failed, or was never made.
func broken(err error) bool {
	var connect *pgconn.ConnectError
	var network net.Error
	return errors.As(err, &connect) || errors.As(err, &network) || errors.Is(err, io.EOF) ||
		errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) || pgconn.SafeToRetry(err) ||
		strings.Contains(err.Error(), "conn closed")
}
