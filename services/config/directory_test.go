package config_test

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/directory"
	"github.com/sluice-fhir/sluice/pkg/directory/pgdir"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/pgdb"
	"github.com/sluice-fhir/sluice/pkg/platform/envconfig"
	"github.com/sluice-fhir/sluice/pkg/testenv"
	"github.com/sluice-fhir/sluice/services/config"
)

func TestDirectoryIsInOnePlace(t *testing.T) {
	for text, good := range map[string]bool{
		"":                             false,
		"DIRECTORY_URL=postgres://h/d": true,
		"GROUPS_DIR=g ACCESS_FILE=a":   true,
		"GROUPS_DIR=g":                 false,
		"ACCESS_FILE=a":                false,
		"DIRECTORY_URL=postgres://h/d GROUPS_DIR=g":               false,
		"DIRECTORY_URL=postgres://h/d ACCESS_FILE=a":              false,
		"DIRECTORY_URL= GROUPS_DIR= ACCESS_FILE=":                 false,
		"DIRECTORY_URL=postgres://h/d GROUPS_DIR=g ACCESS_FILE=a": false,
	} {
		var environ []string
		for entry := range strings.FieldsSeq(text) {
			environ = append(environ, "SLUICE_"+entry)
		}
		err := envconfig.Load(environ, &config.Directory{})
		if (err == nil) != good {
			t.Errorf("%q: %v, want good %v", text, err, good)
		}
		for _, name := range []string{"SLUICE_DIRECTORY_URL", "SLUICE_GROUPS_DIR", "SLUICE_ACCESS_FILE"} {
			if err != nil && !strings.Contains(err.Error(), name) {
				t.Errorf("%q: %v, want an error that names %s", text, err, name)
			}
		}
	}
	malformed := config.Directory{URL: "mysql://hunter2"}
	_, err := malformed.Open(t.Context(), slog.New(slog.DiscardHandler), nil, 1)
	if err == nil || !strings.Contains(err.Error(), "SLUICE_DIRECTORY_URL") || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("a malformed URL: %v", err)
	}
}

// Both kinds of directory give the same result.
func TestOpenDirectory(t *testing.T) {
	owner := export.Owner{Issuer: "i", Subject: "s"}
	const group = `{"resourceType":"Group","id":"g","member":[{"entity":{"reference":"Patient/p1"}}]}`
	answers := func(t *testing.T, place config.Directory) {
		t.Helper()
		register, err := place.Open(t.Context(), slog.New(slog.DiscardHandler), nil, 2)
		if err != nil {
			t.Fatal(err)
		}
		defer register.Close()
		var members []string
		_, err = register.Groups.Members(t.Context(), "g", func(id string) error { members = append(members, id); return nil })
		err = errors.Join(err, register.Check(t.Context()), register.Groups.Exists(t.Context(), "g"))
		if err != nil || len(members) != 1 || members[0] != "p1" {
			t.Errorf("members %q, error %v", members, err)
		}
		if err := register.Groups.Exists(t.Context(), "h"); !errors.Is(err, directory.ErrNoGroup) {
			t.Errorf("an unknown group: %v", err)
		}
		grant, err := register.Access.Grant(t.Context(), owner)
		if err != nil || !grant.Types.Has("Patient") || grant.Types.Has("Condition") || !grant.Groups.Has("g") {
			t.Errorf("grant %+v, error %v", grant, err)
		}
		err = register.Access.Patients(t.Context(), owner, func(_ directory.Grant, patients *directory.PatientFilter) error {
			if included, err := patients.Includes("p2"); err != nil || included {
				t.Errorf("the excepted patient is included: %v, error %v", included, err)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
	t.Run("files", func(t *testing.T) {
		dir := t.TempDir()
		access := filepath.Join(dir, "access.yaml")
		err := errors.Join(os.WriteFile(filepath.Join(dir, "Group.ndjson"), []byte(group), 0o600), os.WriteFile(access,
			[]byte("- {issuer: i, subject: s, types: [Patient], groups: all, patients: {except: [p2]}}\n"), 0o600))
		if err != nil {
			t.Fatal(err)
		}
		answers(t, config.Directory{GroupsDir: dir, AccessFile: access})
	})
	t.Run("database", func(t *testing.T) {
		url := testenv.Postgres(t)
		place := config.Directory{URL: url}
		early, err := place.Open(t.Context(), slog.New(slog.DiscardHandler), nil, 2) // services start in any order
		if err != nil {
			t.Fatal(err)
		}
		defer early.Close()
		if early.Check(t.Context()) == nil {
			t.Error("a database without tables is ready")
		}
		if _, err := pgdb.Migrate(t.Context(), url); err != nil {
			t.Fatal(err)
		}
		if err := early.Check(t.Context()); err != nil {
			t.Error(err)
		}
		pool, err := pgdir.Open(t.Context(), pgdb.Config{URL: url})
		if err != nil {
			t.Fatal(err)
		}
		defer pool.Close()
		patients := func(yield func(string, error) bool) { yield("p1", nil) }
		_, err = pgdir.NewGroups(pool, time.Now).Create(t.Context(), "g", patients)
		err = errors.Join(err, pgdir.NewAccess(pool).Set(t.Context(), directory.GrantEntry{
			Owner: owner, Types: directory.NameList{Names: []string{"Patient"}}, Groups: directory.NameList{All: true},
			Patients: directory.NameList{All: true, Names: []string{"p2"}},
		}, nil))
		if err != nil {
			t.Fatal(err)
		}
		answers(t, place)
	})
}

// A directory that cannot be opened is an error of the configuration, which does not quote the password.
func TestPlacesAreChecked(t *testing.T) {
	const secret = "hunter2"
	s3 := config.Objects{Endpoint: "http://h:9000", AccessKey: "a", SecretKey: secret, Bucket: "sluice"}
	elsewhere, unnamed, tiny := s3, s3, s3
	elsewhere.Endpoint, unnamed.Bucket, tiny.PartBytes = "h:9000", "No Bucket", 1<<20
	for name, row := range map[string]struct {
		err  error
		want string // "": no error
	}{
		"redis":                  {config.Redis{URL: "redis://u:" + secret + "@h:6379/0"}.Validate(), ""},
		"redis by name":          {config.Redis{URL: "u:" + secret + "@h:6379"}.Validate(), "SLUICE_REDIS_URL"},
		"redis, no proof":        {config.Redis{URL: "rediss://:" + secret + "@h?skip_verify=true"}.Validate(), "skip_verify"},
		"objects":                {s3.Validate(), ""},
		"objects, no scheme":     {elsewhere.Validate(), "SLUICE_S3_ENDPOINT"},
		"objects, bad bucket":    {unnamed.Validate(), "SLUICE_S3_BUCKET"},
		"objects, small parts":   {tiny.Validate(), "SLUICE_S3_PART_BYTES"},
		"directory":              {config.Directory{URL: "postgres://u:" + secret + "@h/d"}.Validate(), ""},
		"directory, bad port":    {config.Directory{URL: "postgres://u:" + secret + "@h:x/d"}.Validate(), "SLUICE_DIRECTORY_URL"},
		"directory, bad sslmode": {config.Directory{URL: "postgres://u:" + secret + "@h/d?sslmode=x"}.Validate(), "SLUICE_DIRECTORY_URL"},
		"source":                 {sourceAt("postgres://u:" + secret + "@h/d").Validate(), ""},
		"source, no file":        {sourceAt("postgres://u:" + secret + "@h/d?sslrootcert=/none").Validate(), "SLUICE_SOURCE_URL"},
	} {
		switch {
		case row.want == "" && row.err != nil:
			t.Errorf("%s: %v", name, row.err)
		case row.want != "" && (row.err == nil || !strings.Contains(row.err.Error(), row.want)):
			t.Errorf("%s: %v, want %s", name, row.err, row.want)
		case row.err != nil && strings.Contains(row.err.Error(), secret):
			t.Errorf("%s quotes the password: %v", name, row.err)
		}
	}
}

// sourceAt returns a source on a database, with the defaults.
func sourceAt(url string) config.Source {
	s := envconfig.Defaults[config.Source]()
	s.URL = url
	return s
}
