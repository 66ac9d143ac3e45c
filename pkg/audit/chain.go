package audit

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"regexp"
	"strconv"
	"strings"
)

const (
	// LineLimit is the largest size of a line in bytes, including its line break.
	LineLimit = 64 << 10
	// KeyBytes is the smallest length of a key in bytes.
	KeyBytes = 32

	hashLength = 2 * sha256.Size // of a hash in lower-case hex
	lineEnd    = `"}]}]}`        // what follows the hash
)

// noHash is the previous hash of a chain's first line.
var noHash = strings.Repeat("0", hashLength)

// position is the place of a line in its chain.
type position struct {
	chain    string // 128 random bits in hex
	sequence int64  // from 0
	previous string // hash of the previous line, in hex
}

func newChain() position {
	var id [16]byte
	_, _ = rand.Read(id[:]) // crypto/rand.Read never returns an error
	return position{chain: hex.EncodeToString(id[:]), previous: noHash}
}

// next returns the position after this line, which has the given hash.
func (p position) next(hash string) position {
	return position{chain: p.chain, sequence: p.sequence + 1, previous: hash}
}

// hasher computes the hashes of lines: HMAC-SHA-256 with a key, SHA-256 without.
type hasher struct {
	method string
	new    func() hash.Hash
}

func newHasher(key []byte) hasher {
	if len(key) == 0 {
		return hasher{method: "sha256", new: sha256.New}
	}
	key = bytes.Clone(key)
	return hasher{method: "hmac-sha256", new: func() hash.Hash { return hmac.New(sha256.New, key) }}
}

// seal appends the chain extension to the resource, a JSON object, and returns the line with its line break, and its hash.
// The hash covers all other bytes of the line without the line break.
func (h hasher) seal(resource []byte, at position) (line []byte, sum string) {
	line = fmt.Appendf(resource[:len(resource)-1],
		suffixBegin+`{"url":"chain","valueString":"%s"},{"url":"sequence","valueDecimal":%d},`+
			`{"url":"previous","valueString":"%s"},{"url":"method","valueCode":"%s"},{"url":"hash","valueString":"`,
		at.chain, at.sequence, at.previous, h.method)
	sum = h.sum(line, []byte(lineEnd))
	return append(append(append(line, sum...), lineEnd...), '\n'), sum
}

func (h hasher) sum(parts ...[]byte) string {
	running := h.new()
	for _, part := range parts {
		running.Write(part)
	}
	return hex.EncodeToString(running.Sum(nil))
}

// suffixBegin is the start of the chain extension at the end of every line. No field of an event can contain it, because
// JSON escapes quotation marks.
const suffixBegin = `,"extension":[{"url":"urn:sluice:audit:chain","extension":[`

var suffix = regexp.MustCompile(`^` + regexp.QuoteMeta(suffixBegin) +
	`\{"url":"chain","valueString":"([0-9a-f]{32})"\},\{"url":"sequence","valueDecimal":(0|[1-9][0-9]{0,17})\},` +
	`\{"url":"previous","valueString":"([0-9a-f]{64})"\},\{"url":"method","valueCode":"([a-z0-9-]+)"\},` +
	`\{"url":"hash","valueString":"([0-9a-f]{64})"\}\]\}\]\}$`)

// open verifies a line without its line break, and returns its position and its hash.
func (h hasher) open(line []byte) (at position, sum string, err error) {
	if !bytes.HasPrefix(line, []byte(resourceLineBegin)) {
		return position{}, "", errors.New("not an audit log line")
	}
	found := suffix.FindSubmatch(line[max(0, bytes.LastIndex(line, []byte(suffixBegin))):])
	if found == nil {
		return position{}, "", errors.New("the chain extension at its end is missing or damaged")
	}
	at = position{chain: string(found[1]), previous: string(found[3])}
	if at.sequence, err = strconv.ParseInt(string(found[2]), 10, 64); err != nil {
		return position{}, "", errors.New("invalid sequence number")
	}
	sum = string(found[5])
	cut := len(line) - len(lineEnd) - hashLength
	switch method := string(found[4]); {
	case method != h.method && h.method == "sha256":
		return position{}, "", errors.New("it was written under a key, and no key is given")
	case method != h.method:
		return position{}, "", errors.New("it was written without a key, and a key is given")
	case !hmac.Equal([]byte(h.sum(line[:cut], []byte(lineEnd))), []byte(sum)):
		if h.method == "sha256" {
			return position{}, "", errors.New("it was altered")
		}
		return position{}, "", errors.New("it was altered, or was written under another key")
	}
	return at, sum, nil
}
