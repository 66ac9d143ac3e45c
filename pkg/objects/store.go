// Package objects stores the files of jobs in an S3 bucket.
//
// Writes stream: memory is bounded by the part size, not by the object. Nothing is visible before Commit, which
// returns only after the store has confirmed size and checksum. A write that fails, is aborted or whose context ends
// leaves neither an object nor an unfinished upload, unless the store is unavailable; Uploads, List and DeletePrefix
// find what remains then.
//
// Only basic S3 operations are used: put, multipart, get with a range, head, list v2, delete, and delete of up to 1000
// objects. A key must have one writer at a time (keys contain the fence of the attempt, see export.FileName): the
// clean-up of one writer would remove the object of another. No key may be a folder of another ("a" and "a/b"): MinIO and
// file systems lose one of them. Versioned buckets are not supported, because a delete must remove the data.
//
// Objects can be encrypted (Config.Keys). Sizes, ranges and digests are then those of the plaintext, except in List.
// Reading an object fails if it should be encrypted and is not, or if it is not exactly what was written under its
// key.
//
// Errors: export.ErrUnavailable if the store cannot be reached, refuses the service (401, 403), returns 5xx or throttles
// requests; export.ErrNotFound for a missing object; the context's error if the caller's context has ended. Errors contain
// keys, never query strings.
package objects

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/minio/minio-go/v7/pkg/encrypt"
	"github.com/minio/minio-go/v7/pkg/s3utils"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/platform/telemetry"
)

const (
	// DefaultPartSize is the size of a multipart part unless Config sets another.
	DefaultPartSize = 16 << 20
	// MinPartSize is the minimum in S3 for every part but the last.
	MinPartSize = 5 << 20

	maxPartSize   = 1 << 30
	defaultRegion = "us-east-1"

	tries        = 3               // of one request; minio-go waits at most 1.4 s in between
	checkTimeout = 3 * time.Second // readiness must respond before the probe times out
	overlaps     = 2               // writers that may fill a part while another is being sent
)

// Config configures a Store.
type Config struct {
	Endpoint  string // http(s)://host:port, no path
	AccessKey string
	SecretKey string
	Region    string // "" is us-east-1, the default of MinIO
	Bucket    string
	PartSize  int64 // bytes of a multipart part; 0 is DefaultPartSize
	// ServerSide selects server-side encryption: "s3" for keys of the store, "kms:KEY-ID" for a key of its key management,
	// "" for the bucket's default. A write fails if the store does not confirm it.
	ServerSide string
	Keys       Keys           // nil: no encryption; encrypted objects are read as stored
	Roots      *x509.CertPool // for https; nil: the system's
	Observe    telemetry.Observer
}

// Keys returns the 32-byte data key of an object, or nil if it is in plaintext. It is called for every read and write,
// and must be safe for concurrent use. Its errors are returned wrapped; export.ErrNotFound means that the key was
// destroyed.
type Keys func(ctx context.Context, object string) ([]byte, error)

// Store is one bucket. Its methods are safe for concurrent use.
type Store struct {
	client    *minio.Core
	probe     *minio.Core // without retries: for readiness and for requests that must not be repeated
	transport *http.Transport
	bucket    string
	region    string
	partSize  int
	sse       encrypt.ServerSide // nil: not requested
	keys      Keys               // nil: no encryption
	blocks    *blockPool
	// overlap has a slot for every part that is sent while its writer fills the next one. A writer without a slot waits
	// for its own part. So W writers hold at most W+overlaps parts, and no writer waits for another.
	overlap chan struct{}
}

// Open validates the configuration and returns the store. It does not use the network; Check does.
func Open(cfg Config) (*Store, error) {
	endpoint, err := parseEndpoint(cfg.Endpoint)
	problems := []error{err}
	if cfg.AccessKey == "" || cfg.SecretKey == "" {
		problems = append(problems, errors.New("access key or secret key is missing"))
	}
	if err := s3utils.CheckValidBucketNameStrict(cfg.Bucket); err != nil {
		problems = append(problems, fmt.Errorf("bucket %q: %w", cfg.Bucket, err))
	}
	if cfg.PartSize == 0 {
		cfg.PartSize = DefaultPartSize
	}
	if cfg.PartSize < MinPartSize || cfg.PartSize > maxPartSize {
		problems = append(problems,
			fmt.Errorf("part size %d is not between %d and %d", cfg.PartSize, MinPartSize, maxPartSize))
	}
	sse, err := parseServerSide(cfg.ServerSide)
	problems = append(problems, err)
	if err := errors.Join(problems...); err != nil {
		return nil, fmt.Errorf("object store: %w", err)
	}
	if cfg.Region == "" {
		cfg.Region = defaultRegion // without a region minio-go looks it up, which fails when the store is down
	}

	transport := newTransport(cfg.Roots)
	connect := func(tries int) (*minio.Core, error) {
		return minio.NewCore(endpoint.Host, &minio.Options{
			Creds:        credentials.NewStaticV4(cfg.AccessKey, cfg.SecretKey, ""),
			Secure:       endpoint.Scheme == "https",
			Transport:    observed{transport, cfg.Observe},
			Region:       cfg.Region,
			BucketLookup: minio.BucketLookupPath,
			MaxRetries:   tries,
		})
	}
	client, err := connect(tries)
	if err != nil {
		return nil, fmt.Errorf("object store: %w", err)
	}
	probe, err := connect(1)
	if err != nil {
		return nil, fmt.Errorf("object store: %w", err)
	}
	return &Store{
		client:    client,
		probe:     probe,
		transport: transport,
		bucket:    cfg.Bucket,
		region:    cfg.Region,
		partSize:  int(cfg.PartSize),
		sse:       sse,
		keys:      cfg.Keys,
		blocks:    newBlockPool(int(cfg.PartSize) * (overlaps + 1)),
		overlap:   make(chan struct{}, overlaps),
	}, nil
}

func parseEndpoint(endpoint string) (*url.URL, error) {
	parsed, err := url.Parse(endpoint)
	switch {
	case err != nil, parsed.Host == "", parsed.Scheme != "http" && parsed.Scheme != "https":
		return nil, errors.New("endpoint is not http(s)://host:port")
	case parsed.User != nil, parsed.RawQuery != "", parsed.Path != "" && parsed.Path != "/":
		return nil, errors.New("endpoint has more than a host and a port")
	}
	return parsed, nil
}

// Close closes idle connections. Open readers and writers continue.
func (s *Store) Close() { s.transport.CloseIdleConnections() }

// EnsureBucket creates the bucket if it does not exist. Concurrent and repeated calls are safe.
func (s *Store) EnsureBucket(ctx context.Context) error {
	there, err := s.client.BucketExists(ctx, s.bucket)
	if err == nil && !there {
		err = s.client.MakeBucket(ctx, s.bucket, minio.MakeBucketOptions{Region: s.region})
		if taken(err) {
			// Created in the meantime, possibly by another owner.
			there, err = s.client.BucketExists(ctx, s.bucket)
			if err == nil && !there {
				err = errors.New("another owner has a bucket of this name")
			}
		}
	}
	if err != nil {
		return fmt.Errorf("ensure bucket %s: %w", s.bucket, failure(ctx, err))
	}
	return nil
}

func taken(err error) bool {
	code := minio.ToErrorResponse(err).Code
	return code == minio.BucketAlreadyOwnedByYou || code == minio.BucketAlreadyExists ||
		code == "OperationAborted" // S3's response to concurrent creations
}

// Check returns nil if the store responds and has the bucket. Any error is export.ErrUnavailable. It returns within
// checkTimeout.
func (s *Store) Check(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	there, err := s.probe.BucketExists(ctx, s.bucket)
	if err == nil && !there {
		err = errors.New("the bucket does not exist")
	}
	if err == nil {
		return nil
	}
	err = failure(ctx, err)
	if errors.Is(err, export.ErrUnavailable) {
		return fmt.Errorf("check bucket %s: %w", s.bucket, err)
	}
	return fmt.Errorf("check bucket %s: %w: %w", s.bucket, export.ErrUnavailable, err)
}
