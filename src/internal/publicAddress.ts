/**
 * Which network addresses anyone may be sent to, and which belong to this machine, this network, or nobody.
 *
 * Source: the special-purpose address registries of IANA for IPv4 and IPv6 (RFC 6890); what they list as not globally reachable is
 * not public, and neither are multicast addresses.
 *
 * @since 0.1.0
 */
import * as Dns from "node:dns"
import * as Net from "node:net"

const ipv4: ReadonlyArray<readonly [network: string, prefix: number]> = [
  ["0.0.0.0", 8],
  ["10.0.0.0", 8],
  ["100.64.0.0", 10],
  ["127.0.0.0", 8],
  ["169.254.0.0", 16],
  ["172.16.0.0", 12],
  ["192.0.0.0", 24],
  ["192.0.2.0", 24],
  ["192.88.99.0", 24],
  ["192.168.0.0", 16],
  ["198.18.0.0", 15],
  ["198.51.100.0", 24],
  ["203.0.113.0", 24],
  ["224.0.0.0", 4],
  ["240.0.0.0", 4]
]

const ipv6: ReadonlyArray<readonly [network: string, prefix: number]> = [
  // Unspecified, loopback, and the deprecated form that holds an IPv4 address.
  ["::", 96],
  // Translation for local use.
  ["64:ff9b:1::", 48],
  ["100::", 64],
  // Protocol assignments: Teredo, benchmarking, ORCHID.
  ["2001::", 23],
  ["2001:db8::", 32],
  // 6to4, which holds an IPv4 address.
  ["2002::", 16],
  ["3fff::", 20],
  ["5f00::", 16],
  ["fc00::", 7],
  ["fe80::", 10],
  // Site-local, deprecated and still routed in places.
  ["fec0::", 10],
  ["ff00::", 8]
]

const special = (() => {
  const list = new Net.BlockList()
  for (const [network, prefix] of ipv4) {
    // The list also finds these where they are mapped into IPv6, as `::ffff:127.0.0.1`.
    list.addSubnet(network, prefix, "ipv4")
    // Behind a translator (RFC 6052) every IPv4 address is reached by an IPv6 address with this prefix.
    list.addSubnet(`64:ff9b::${network}`, 96 + prefix, "ipv6")
  }
  for (const [network, prefix] of ipv6) list.addSubnet(network, prefix, "ipv6")
  return list
})()

/**
 * Whether a numeric address is public. What is no address is not.
 *
 * @internal
 */
export const isPublic = (address: string): boolean => {
  const family = Net.isIP(address)
  return family !== 0 && !special.check(address, family === 6 ? "ipv6" : "ipv4")
}

/**
 * A lookup that refuses names that have an address which is not public. In a client's agent it gives the very addresses that are then
 * connected to.
 *
 * @internal
 */
export const lookup: Net.LookupFunction = (hostname, options, callback) => {
  Dns.lookup(hostname, { ...options, all: true }, (error, addresses) => {
    if (error !== null) return callback(error, "")
    const refused = addresses.find(({ address }) => !isPublic(address))
    const [first] = addresses
    if (refused !== undefined || first === undefined) {
      const why = refused === undefined ? "no address" : `the address ${refused.address}, which is not public`
      return callback(Object.assign(new Error(`${hostname} has ${why}`), { code: "EACCES" }), "")
    }
    return options.all === true ? callback(null, addresses) : callback(null, first.address, first.family)
  })
}

/**
 * One of the addresses of a host that is not public, or `undefined`. A literal needs no lookup; one that fails is the failure of the promise.
 *
 * @internal
 */
export const findPrivate = async (url: URL): Promise<string | undefined> => {
  const host = url.hostname.startsWith("[") ? url.hostname.slice(1, -1) : url.hostname
  const addresses = Net.isIP(host) === 0 ? await Dns.promises.lookup(host, { all: true }) : [{ address: host }]
  return addresses.find(({ address }) => !isPublic(address))?.address
}
