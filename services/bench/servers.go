package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/sluice-fhir/sluice/pkg/objects"
)

// servers are the servers that scripts/servers.sh has started.
type servers struct {
	redis, postgres string // URLs
	s3              *url.URL
	databases       int // of Redis: each deployment has one of its own
}

func findServers() (servers, error) {
	s := servers{redis: os.Getenv("SLUICE_TEST_REDIS"), postgres: os.Getenv("SLUICE_TEST_POSTGRES")}
	var err error
	s.s3, err = url.Parse(os.Getenv("SLUICE_TEST_S3"))
	if err != nil || s.redis == "" || s.postgres == "" || s.s3.User == nil {
		return servers{}, errors.New("no servers are configured: run scripts/bench.sh")
	}
	return s, nil
}

func (s *servers) newRedis() string {
	s.databases++
	return fmt.Sprintf("%s/%d", strings.TrimRight(s.redis, "/"), s.databases)
}

func (s *servers) secret() string {
	secret, _ := s.s3.User.Password()
	return secret
}

// settings are those of a service that uses the stores.
func (s *servers) settings(redis, bucket string) []string {
	return []string{
		"SLUICE_REDIS_URL=" + redis, "SLUICE_S3_ENDPOINT=" + s.s3.Scheme + "://" + s.s3.Host,
		"SLUICE_S3_ACCESS_KEY=" + s.s3.User.Username(), "SLUICE_S3_SECRET_KEY=" + s.secret(), "SLUICE_S3_BUCKET=" + bucket,
	}
}

func (s *servers) newBucket(ctx context.Context) (*objects.Store, string, error) {
	bucket := "bench-" + uuid.NewString()
	store, err := objects.Open(objects.Config{
		Endpoint: s.s3.Scheme + "://" + s.s3.Host, AccessKey: s.s3.User.Username(), SecretKey: s.secret(), Bucket: bucket,
	})
	if err != nil {
		return nil, "", err
	}
	return store, bucket, store.EnsureBucket(ctx)
}

// newDatabase creates a database and returns its URL.
func (s *servers) newDatabase(ctx context.Context, name string) (string, error) {
	conn, err := pgx.Connect(ctx, s.postgres)
	if err != nil {
		return "", err
	}
	_, err = conn.Exec(ctx, "CREATE DATABASE "+pgx.Identifier{name}.Sanitize()+" ENCODING 'UTF8' TEMPLATE template0")
	if err := errors.Join(err, conn.Close(ctx)); err != nil {
		return "", err
	}
	place, err := url.Parse(s.postgres)
	if err != nil {
		return "", err
	}
	place.Path = "/" + name
	return place.String(), nil
}

// minio returns a plain client of the store, for operations that Sluice never uses.
func (s *servers) minio() (*minio.Client, error) {
	return minio.New(s.s3.Host, &minio.Options{Creds: credentials.NewStaticV4(s.s3.User.Username(), s.secret(), "")})
}
