// Package envelope manages the data keys that encrypt the objects of jobs.
//
// Each job has a random data key. The job's record contains it wrapped: encrypted under a master key that only
// Sluice processes hold, and bound to the job and its owner. The bucket and Redis together do not reveal data, and a job
// whose owner is changed in Redis cannot be read. A purge deletes the
// record, which makes every copy of the job's objects unreadable.
//
// For rotation there may be several master keys: the first one wraps new data keys, and all of them unwrap.
package envelope

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/sluice-fhir/sluice/pkg/export"
)

// keySize is the size of master keys and data keys in bytes: AES-256.
const keySize = 32

// A wrapped key is 1 byte version, 1 byte length of the master key's id, the id, 12 bytes random nonce, and 48 bytes:
// the data key under AES-256-GCM with its tag. The additional data is everything before the nonce, the job's id, and in
// version 2 the job's owner. Version 1 is only read.
const (
	version      = 2
	withoutOwner = 1
	nonceSize    = 12
)

var keyID = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

// Keys are the master keys.
type Keys struct {
	first string
	byID  map[string]cipher.AEAD
}

// ParseKeys parses master keys, each "id:base64 of 32 bytes", separated by white space. Ids must be unique. An empty
// text yields no keys. Errors contain the number of a key, never its text.
func ParseKeys(text string) (*Keys, error) {
	keys := &Keys{byID: map[string]cipher.AEAD{}}
	var problems []error
	for i, entry := range strings.Fields(text) {
		id, encoded, _ := strings.Cut(entry, ":")
		secret, err := base64.StdEncoding.DecodeString(encoded)
		switch _, twice := keys.byID[id]; {
		case !keyID.MatchString(id):
			problems = append(problems, fmt.Errorf("key %d is not of the form id:base64", i+1))
			continue
		case err != nil || len(secret) != keySize:
			problems = append(problems, fmt.Errorf("key %d is not the base64 of %d bytes", i+1, keySize))
			continue
		case twice:
			problems = append(problems, fmt.Errorf("key %d has the id of another key", i+1))
			continue
		}
		if keys.byID[id], err = newAEAD(secret); err != nil {
			return nil, err
		}
		if keys.first == "" {
			keys.first = id
		}
	}
	if err := errors.Join(problems...); err != nil {
		return nil, err
	}
	return keys, nil
}

func newAEAD(secret []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(secret)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// Empty reports whether there is no master key.
func (k *Keys) Empty() bool { return len(k.byID) == 0 }

// New returns a new wrapped data key for the owner's job. It panics without a master key.
func (k *Keys) New(job export.JobID, owner export.Owner) []byte {
	dataKey := make([]byte, keySize)
	_, _ = rand.Read(dataKey)                                       // never fails
	head := append([]byte{version, byte(len(k.first))}, k.first...) //nolint:gosec // ids are short: see ParseKeys
	wrapped := append(head, make([]byte, nonceSize)...)
	nonce := wrapped[len(head):]
	_, _ = rand.Read(nonce)
	return k.byID[k.first].Seal(wrapped, nonce, dataKey, additionalData(head, job, owner))
}

// unwrap returns the job's data key. It returns export.ErrUnavailable for an unknown master key: work continues
// once the key is configured.
func (k *Keys) unwrap(job export.JobID, owner export.Owner, wrapped []byte) ([]byte, error) {
	if len(wrapped) < 2 || wrapped[0] != version && wrapped[0] != withoutOwner || len(wrapped) < 2+int(wrapped[1])+nonceSize {
		return nil, fmt.Errorf("data key of job %s: invalid form", job)
	}
	head, rest := wrapped[:2+int(wrapped[1])], wrapped[2+int(wrapped[1]):]
	aead, there := k.byID[string(head[2:])]
	if !there {
		return nil, fmt.Errorf("data key of job %s: master key %q is not configured: %w",
			job, head[2:], export.ErrUnavailable)
	}
	dataKey, err := aead.Open(nil, rest[:nonceSize], rest[nonceSize:], additionalData(head, job, owner))
	if err != nil {
		return nil, fmt.Errorf("data key of job %s: not wrapped for this job and owner under master key %q", job, head[2:])
	}
	return dataKey, nil
}

// additionalData binds a wrapped key to its version, its master key's id, its job and its owner.
func additionalData(head []byte, job export.JobID, owner export.Owner) []byte {
	data := append(append([]byte("sluice data key\x00"), head...), job...)
	if head[0] == withoutOwner {
		return data
	}
	return append(data, owner.Key()...)
}
