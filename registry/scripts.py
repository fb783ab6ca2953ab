"""The Lua the store runs: each script is one atomic step and one round trip.

All ages are by the store's own clock, so no member's clock matters (reliability F17). Keys beside
those declared are of the same hash tag.
"""

ANNOUNCE = """
-- KEYS member, members, memory; ARGV id, record, ttl_ms, random word, channel
local ttl_ms = tonumber(ARGV[3])
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local before = redis.call('GET', KEYS[1])
redis.call('SET', KEYS[1], ARGV[2], 'PX', ttl_ms)
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now_ms)
redis.call('ZADD', KEYS[2], now_ms + ttl_ms, ARGV[1])
redis.call('SET', KEYS[3], ARGV[4], 'NX')
for i = 2, 3 do
  if redis.call('PTTL', KEYS[i]) < ttl_ms then redis.call('PEXPIRE', KEYS[i], ttl_ms) end
end
if before ~= ARGV[2] then redis.call('PUBLISH', ARGV[5], ARGV[1]) end
return 1
"""

WITHDRAW = """
-- KEYS member, members; ARGV id, incarnation, channel
local before = redis.call('GET', KEYS[1])
if not before then return 0 end
local is_json, record = pcall(cjson.decode, before)
if is_json and type(record) == 'table' and record.incarnation ~= ARGV[2] then return 0 end
redis.call('DEL', KEYS[1])
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('PUBLISH', ARGV[3], ARGV[1])
return 1
"""

READ = """
-- KEYS members, memory; ARGV member key prefix, max members, max bytes of a record
-- Returns the memory word, then id, record, id, record, ... ; an empty record has expired.
local reply = { redis.call('GET', KEYS[2]) or '' }
for _, id in ipairs(redis.call('ZRANGE', KEYS[1], 0, ARGV[2] - 1)) do
  local record = redis.pcall('GETRANGE', ARGV[1] .. id, 0, ARGV[3] - 1)
  reply[#reply + 1] = id
  reply[#reply + 1] = type(record) == 'string' and record or 'not a string'
end
return reply
"""
