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
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/platform/telemetry"
)

// Config configures a connection pool.
type Config struct {
	URL         string            // postgres://user:password@host:port/database?sslmode=verify-full
	Connections int               // maximum; default: pgx's
	Settings    map[string]string // of every session, such as jit=off
	ReadBuffer  int               // bytes; default: pgx's
	Roots       *x509.CertPool    // for TLS without sslrootcert; nil: the system's
	Observe     telemetry.Observer
}

// Open returns a pool. It does not connect. Errors contain no part of the URL, which may contain a password.
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

// CheckURL returns the error that Open would return for the URL, including errors of files that it names.
func CheckURL(url string) error {
	if _, err := pgxpool.ParseConfig(url); err != nil {
		return notURL(err)
	}
	return nil
}

// notURL returns the error for a malformed URL, without the URL and the file names in it.
func notURL(err error) error {
	var file *fs.PathError
	if errors.As(err, &file) {
		return fmt.Errorf("a file named in the URL of the PostgreSQL database: %w", file.Err)
	}
	return errors.New("not the URL of a PostgreSQL database")
}

// Wrap adds the act to err and removes the values that PostgreSQL quotes in details. It marks outages as
// export.ErrUnavailable: the server is unreachable, shuts down, has no free connection or drops the connection. A statement
// that the server cancelled, for its statement_timeout, is a context.DeadlineExceeded. Wrap returns nil for nil, and never
// marks errors of the context.
func Wrap(act string, err error) error {
	if err == nil {
		return nil
	}
	// A connect timeout is a DeadlineExceeded too, although the caller's context has not ended.
	var connect *pgconn.ConnectError
	if errors.As(err, &connect) && errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%s: %w: %w", act, export.ErrUnavailable, errTimeout)
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%s: %w", act, err)
	}
	var refused *pgconn.PgError
	switch {
	case errors.As(err, &refused):
		text := "postgres error " + refused.Code
		if quotable(refused.Code) {
			text += ": " + refused.Message
		}
		switch {
		case outage(refused.Code):
			return fmt.Errorf("%s: %w: %s", act, export.ErrUnavailable, text)
		case refused.Code == queryCanceled: // no outage: it may take too long each time
			return fmt.Errorf("%s: %w: %s", act, context.DeadlineExceeded, text)
		}
		return fmt.Errorf("%s: %s", act, text)
	case broken(err):
		return fmt.Errorf("%s: %w: %w", act, export.ErrUnavailable, err)
	}
	return fmt.Errorf("%s: %w", act, err)
}

var errTimeout = errors.New("connect timeout")

const queryCanceled = "57014"

// outage reports whether a retry of the same query may succeed: connection exceptions (08), lack of resources (53),
// shutdown and recovery (57P), I/O errors (58), serialization failures (40); and whether an operator can repair what no
// query can: the credentials (28) or the database (3D) of the service.
func outage(code string) bool {
	return slices.ContainsFunc([]string{"08", "53", "57P", "58", "40", "28", "3D"}, func(class string) bool {
		return strings.HasPrefix(code, class)
	})
}

// quotable reports whether the server's message contains only names from the query (42), of the database (3D) or of the
// user (28), or was raised by a migration (P0001).
func quotable(code string) bool {
	return code == "P0001" || strings.HasPrefix(code, "42") || strings.HasPrefix(code, "3D") || strings.HasPrefix(code, "28")
}

// broken reports whether the connection failed or was never established.
func broken(err error) bool {
	var connect *pgconn.ConnectError
	var network net.Error
	return errors.As(err, &connect) || errors.As(err, &network) || errors.Is(err, io.EOF) ||
		errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) || pgconn.SafeToRetry(err) ||
		strings.Contains(err.Error(), "conn closed")
}
