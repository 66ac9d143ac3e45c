// Package objects keeps the files of jobs in an S3 bucket.
//
// A write streams: memory is bounded by the part size and not by the object, and nothing is visible before Commit,
// which returns only after the store has confirmed the size and a checksum of everything that was written. A write
// that fails, is aborted or whose context ends leaves neither an object nor an unfinished upload, unless the store
// itself cannot be reached; what then stays behind is found by Uploads, List and DeletePrefix.
//
// Only the plain S3 subset is used: put, multipart, get with a range, head, list v2 and delete. Keys are used by one
// writer at a time (they carry the fence of the attempt, see export.FileName): two writers of one key are not told
// apart when one of them has to be undone. No key may be another one's folder ("a" beside "a/b"): MinIO and file
// systems lose one of the two. Versioned buckets are not supported: a delete has to delete.
//
// Objects can be encrypted (Config.Keys). Sizes, ranges and digests are those of the plaintext all the same, but for List.
// An object that should be encrypted and is not, or is not exactly what was written under its key, is an error.
//
// Errors: a store that cannot be reached, answers 5xx or asks to slow down is export.ErrUnavailable; a missing object
// is export.ErrNotFound; when the caller's context has ended its error is returned instead. Errors name keys, never
// query strings.
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
	// DefaultPartSize is the size of a multipart part unless Config says otherwise.
	DefaultPartSize = 16 << 20
	// MinPartSize is what S3 demands of every part but the last.
	MinPartSize = 5 << 20

	maxPartSize   = 1 << 30
	defaultRegion = "us-east-1"

	tries        = 3               // of one request; the library waits at most 1.4 s in between
	checkTimeout = 3 * time.Second // readiness has to answer before its prober gives up
	overlaps     = 2               // writers that may fill a part while another is on its way
)

// Config says where the bucket is.
type Config struct {
	Endpoint  string // http(s)://host:port, no path
	AccessKey string
	SecretKey string
	Region    string // "" is us-east-1, which is what MinIO calls itself
	Bucket    string
	PartSize  int64 // bytes of a multipart part; 0 is DefaultPartSize
	// ServerSide has the store encrypt what it is given: "s3" by keys of its own, "kms:KEY-ID" by that key of its key
	// management, "" not at all or as the bucket says. A store that does not confirm it is refused.
	ServerSide string
	Keys       Keys           // nil: nothing is encrypted, and what is encrypted is read as it is stored
	Roots      *x509.CertPool // of an endpoint behind https; nil is the system's
	Observe    telemetry.Observer
}

// Keys returns the data key, of 32 bytes, that the object of that key is encrypted with, or nil if it is in plaintext.
// It is asked at every read and write and may be asked from any goroutine. Its errors are returned wrapped;
// export.ErrNotFound is one for objects whose key is no more.
type Keys func(ctx context.Context, object string) ([]byte, error)

// Store is one bucket. Its methods may be called from any goroutine.
type Store struct {
	client    *minio.Core
	probe     *minio.Core // the same store, asked once: for who cannot wait, or must not repeat
	transport *http.Transport
	bucket    string
	region    string
	partSize  int
	sse       encrypt.ServerSide // nil: not asked for
	keys      Keys               // nil: nothing is encrypted here
	blocks    *blockPool
	// overlap holds a slot for every part that is sent while its writer fills the next. A writer that finds no slot
	// waits for its own part, so W writers hold at most W+overlaps parts and no writer ever waits for another.
	overlap chan struct{}
}

// Open checks the configuration and returns the store. It does not touch the network; Check does.
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
		cfg.Region = defaultRegion // an empty region would cost a lookup, and fail when the store is down
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

// Close drops idle connections. Open readers and writers are not touched.
func (s *Store) Close() { s.transport.CloseIdleConnections() }

// EnsureBucket creates the bucket when it is not there. Any number of processes may do so at once and again.
func (s *Store) EnsureBucket(ctx context.Context) error {
	there, err := s.client.BucketExists(ctx, s.bucket)
	if err == nil && !there {
		err = s.client.MakeBucket(ctx, s.bucket, minio.MakeBucketOptions{Region: s.region})
		if taken(err) {
			// Made in the meantime, by us or by somebody else: the look tells which.
			there, err = s.client.BucketExists(ctx, s.bucket)
			if err == nil && !there {
				err = errors.New("the name is taken and the bucket is not ours")
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
		code == "OperationAborted" // S3's answer to two creations at the same time
}

// Check reports whether the store answers and has the bucket: nil, or an error that is export.ErrUnavailable,
// whatever the reason is. It answers within checkTimeout.
func (s *Store) Check(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	there, err := s.probe.BucketExists(ctx, s.bucket)
	if err == nil && !there {
		err = errors.New("there is no such bucket")
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
