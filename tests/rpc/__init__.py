"""Tests of RPC: calls and topics."""
