// Package groupndjson reads a Group resource (FHIR R4) from one line of NDJSON for the implementations of the directory.
// A group may have any number of members: they are handed on one by one and never held. Errors say what is wrong and
// hold nothing of the line.
package groupndjson
