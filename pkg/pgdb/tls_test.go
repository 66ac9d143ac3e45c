package pgdb_test

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/pgdb"
	"github.com/sluice-fhir/sluice/pkg/testenv"
)

func TestTLS(t *testing.T) {
	authority, otherAuthority := testenv.NewAuthority(t), testenv.NewAuthority(t)
	valid := time.Now().Add(time.Hour)
	good := testenv.SecurePostgres(t, authority.Issue(valid, "127.0.0.1"))
	expired := testenv.SecurePostgres(t, authority.Issue(time.Now().Add(-time.Hour), "127.0.0.1"))
	file, other := "&sslrootcert="+url.QueryEscape(authority.File()), "&sslrootcert="+url.QueryEscape(otherAuthority.File())
	for name, row := range map[string]struct {
		server, query string
		roots         *x509.CertPool
		want          string // of the error; "": none
		plain         bool   // it connects without TLS
	}{
		"by a file":                  {server: good, query: "sslmode=verify-full" + file},
		"by the roots":               {server: good, query: "sslmode=verify-full", roots: authority.Pool()},
		"a file beats the roots":     {server: good, query: "sslmode=verify-full" + file, roots: otherAuthority.Pool()},
		"verify-ca by the roots":     {server: good, query: "sslmode=verify-ca", roots: authority.Pool()},
		"another authority":          {server: good, query: "sslmode=verify-full" + other, want: "unknown authority"},
		"other roots":                {server: good, query: "sslmode=verify-full", roots: otherAuthority.Pool(), want: "unknown authority"},
		"verify-ca, other roots":     {server: good, query: "sslmode=verify-ca", roots: otherAuthority.Pool(), want: "unknown authority"},
		"the system's alone":         {server: good, query: "sslmode=verify-full", want: "unknown authority"},
		"another host":               {server: strings.Replace(good, "127.0.0.1", "localhost", 1), query: "sslmode=verify-full" + file, want: "wanted to match localhost"},
		"expired":                    {server: expired, query: "sslmode=verify-full" + file, want: "expired"},
		"asked for plain text":       {server: good, query: "sslmode=disable", plain: true},
		"plain server, full":         {server: plain(t), query: "sslmode=verify-full" + file, want: "refused TLS"},
		"plain server on this host":  {server: plain(t), query: "", plain: true},
		"TLS server on this machine": {server: good, query: ""},
	} {
		pool, err := pgdb.Open(t.Context(), pgdb.Config{URL: row.server + "?" + row.query, Roots: row.roots})
		must(t, err)
		var encrypted bool
		err = pgdb.Wrap("query", pool.QueryRow(t.Context(), "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").Scan(&encrypted))
		if row.want == "" && (err != nil || encrypted == row.plain) {
			t.Errorf("%s: %v, encrypted %v", name, err, encrypted)
		}
		if row.want != "" && (!errors.Is(err, export.ErrUnavailable) || !strings.Contains(err.Error(), row.want)) {
			t.Errorf("%s: %v, want an outage with %q", name, err, row.want)
		}
		if err != nil && strings.Contains(err.Error(), password(t, row.server)) {
			t.Errorf("%s: the password is in %v", name, err)
		}
		pool.Close()
	}
	if _, err := pgdb.Migrate(t.Context(), good+"?sslmode=verify-full"+file); err != nil {
		t.Error(err)
	}
	if _, err := pgdb.Migrate(t.Context(), good+"?sslmode=verify-full"+other); err == nil {
		t.Error("migrated an unverified database")
	}
}

func plain(t *testing.T) string {
	t.Helper()
	server, _, _ := strings.Cut(testenv.Postgres(t), "?")
	return server
}

func password(t *testing.T, server string) string {
	t.Helper()
	parsed, err := url.Parse(server)
	must(t, err)
	secret, _ := parsed.User.Password()
	return secret
}

func TestMissingRootsFile(t *testing.T) {
	_, err := pgdb.Open(t.Context(), pgdb.Config{URL: "postgres://u:hunter2@h/d?sslmode=verify-full&sslrootcert=/hunter2"})
	if !errors.Is(err, fs.ErrNotExist) || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("got %v, want ErrNotExist without the name", err)
	}
}

// TestModes checks how each sslmode connects, without a server.
func TestModes(t *testing.T) {
	for text, want := range map[string]string{
		"postgres://h/d":                               "h:5432 verified",
		"postgres://h/d?sslmode=prefer":                "h:5432 verified",
		"postgres://h/d?sslmode=allow":                 "h:5432 verified",
		"postgres://192.0.2.1/d":                       "192.0.2.1:5432 verified",
		"postgres://a,b/d":                             "a:5432 verified, b:5432 verified",
		"postgres://h,h/d":                             "h:5432 verified",
		"postgres://h/d?sslmode=verify-full":           "h:5432 verified",
		"postgres://h/d?sslmode=require":               "h:5432 encrypted",
		"postgres://h/d?sslmode=disable":               "h:5432 plain",
		"postgres://h,127.0.0.1/d":                     "h:5432 verified, 127.0.0.1:5432 encrypted, 127.0.0.1:5432 plain",
		"postgres://localhost/d":                       "localhost:5432 encrypted, localhost:5432 plain",
		"host=/run/postgresql dbname=d":                "/run/postgresql:5432 plain",
		"postgres://h/d?sslmode=prefer&sslrootcert=no": "",
	} {
		pool, err := pgdb.Open(t.Context(), pgdb.Config{URL: text})
		if err != nil {
			if want != "" {
				t.Errorf("%s: %v", text, err)
			}
			continue
		}
		if got := ways(pool); got != want {
			t.Errorf("%s: %s, want %s", text, got, want)
		}
		pool.Close()
	}
}

// ways returns the connection attempts of a pool, in order.
func ways(pool *pgxpool.Pool) string {
	config := pool.Config().ConnConfig
	all := []*pgconn.FallbackConfig{{Host: config.Host, Port: config.Port, TLSConfig: config.TLSConfig}}
	var text []string
	for _, one := range append(all, config.Fallbacks...) {
		how := "verified"
		switch {
		case one.TLSConfig == nil:
			how = "plain"
		case one.TLSConfig.InsecureSkipVerify:
			how = "encrypted"
		case one.TLSConfig.ServerName != one.Host:
			how = "for another host"
		}
		text = append(text, fmt.Sprintf("%s:%d %s", one.Host, one.Port, how))
	}
	return strings.Join(text, ", ")
}
