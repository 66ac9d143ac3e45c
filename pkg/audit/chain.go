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
	// LineLimit is the most bytes that a line has, its line break included.
	LineLimit = 64 << 10
	// KeyBytes is the least length of a key.
	KeyBytes = 32

	hashLength = 2 * sha256.Size // of a hash in lower-case hex
	lineEnd    = `"}]}]}`        // what follows the hash
)

// noHash stands for the line before the first.
var noHash = strings.Repeat("0", hashLength)

// link is the place of a line in its chain.
type link struct {
	chain    string // 128 random bits in hex
	sequence int64  // from 0
	previous string // the hash of the line before, in hex
}

func newChain() link {
	var id [16]byte
	_, _ = rand.Read(id[:]) // crypto/rand.Read never fails: it aborts the process instead
	return link{chain: hex.EncodeToString(id[:]), previous: noHash}
}

// after is the place behind a line with that hash.
func (l link) after(hash string) link {
	return link{chain: l.chain, sequence: l.sequence + 1, previous: hash}
}

// hashing makes the hashes of lines: under a key, or plainly without one.
type hashing struct {
	method string
	begin  func() hash.Hash
}

func newHashing(key []byte) hashing {
	if len(key) == 0 {
		return hashing{method: "sha256", begin: sha256.New}
	}
	key = bytes.Clone(key)
	return hashing{method: "hmac-sha256", begin: func() hash.Hash { return hmac.New(sha256.New, key) }}
}

// seal puts the place in the chain behind the resource, which is a JSON object, and returns the line with its line
// break and the line's hash. The hash goes over all other bytes of the line.
func (h hashing) seal(resource []byte, at link) (line []byte, sum string) {
	line = fmt.Appendf(resource[:len(resource)-1],
		seamBegin+`{"url":"chain","valueString":"%s"},{"url":"sequence","valueDecimal":%d},`+
			`{"url":"previous","valueString":"%s"},{"url":"method","valueCode":"%s"},{"url":"hash","valueString":"`,
		at.chain, at.sequence, at.previous, h.method)
	sum = h.sum(line, []byte(lineEnd))
	return append(append(append(line, sum...), lineEnd...), '\n'), sum
}

func (h hashing) sum(parts ...[]byte) string {
	running := h.begin()
	for _, part := range parts {
		running.Write(part)
	}
	return hex.EncodeToString(running.Sum(nil))
}

// seamBegin begins the end of every line, which seam reads. Nothing that an event holds can look like it: a quotation
// mark in a JSON string has a backslash before it.
const seamBegin = `,"extension":[{"url":"urn:sluice:audit:chain","extension":[`

var seam = regexp.MustCompile(`^` + regexp.QuoteMeta(seamBegin) +
	`\{"url":"chain","valueString":"([0-9a-f]{32})"\},\{"url":"sequence","valueDecimal":(0|[1-9][0-9]{0,17})\},` +
	`\{"url":"previous","valueString":"([0-9a-f]{64})"\},\{"url":"method","valueCode":"([a-z0-9-]+)"\},` +
	`\{"url":"hash","valueString":"([0-9a-f]{64})"\}\]\}\]\}$`)

// open checks a line, without its line break, and returns its place in its chain and its hash. An error says what is
// wrong with the line.
func (h hashing) open(line []byte) (at link, sum string, err error) {
	if !bytes.HasPrefix(line, []byte(resourceLineBegin)) {
		return link{}, "", errors.New("it is no line of an audit log")
	}
	found := seam.FindSubmatch(line[max(0, bytes.LastIndex(line, []byte(seamBegin))):])
	if found == nil {
		return link{}, "", errors.New("it does not end as a line of an audit log")
	}
	at = link{chain: string(found[1]), previous: string(found[3])}
	if at.sequence, err = strconv.ParseInt(string(found[2]), 10, 64); err != nil {
		return link{}, "", errors.New("its sequence number cannot be read")
	}
	sum = string(found[5])
	cut := len(line) - len(lineEnd) - hashLength
	switch method := string(found[4]); {
	case method != h.method && h.method == "sha256":
		return link{}, "", errors.New("it is under a key, and no key was given")
	case method != h.method:
		return link{}, "", errors.New("it is not under a key, although one was given")
	case !hmac.Equal([]byte(h.sum(line[:cut], []byte(lineEnd))), []byte(sum)):
		if h.method == "sha256" {
			return link{}, "", errors.New("it was altered")
		}
		return link{}, "", errors.New("it was altered, or is under another key")
	}
	return at, sum, nil
}
